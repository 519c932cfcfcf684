"""How the provider of the tests puts bytes on the wire, and on the WebSocket."""

import asyncio
import base64
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from tests.support.provider_faults import ERRORS, PROVIDER_WORDS, Fault, Planted, Reply


async def send(request: web.Request, reply: Reply) -> web.StreamResponse:
    headers = {"Content-Type": reply.content_type, **reply.headers}
    response = web.StreamResponse(status=reply.status, headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    for piece in reply.pieces:
        await response.write(piece)
        await asyncio.sleep(reply.piece_delay_seconds)
    match reply.after:
        case "reset":
            await _reset(request)
        case "stall":
            await _stall(request)
        case "repeat":
            while True:
                for piece in reply.pieces:
                    await response.write(piece)
                    await asyncio.sleep(0)
        case _:
            await response.write_eof()
    return response


# Mischief below HTTP: bytes on the transport, past aiohttp's back.

RAW_BODIES = {
    Fault.GZIP_GARBAGE: "Content-Encoding: gzip\r\nTransfer-Encoding: chunked",
    Fault.CHUNKED_LIE: "Transfer-Encoding: chunked",
    Fault.CUT_AT_BYTE: "Transfer-Encoding: chunked",
    Fault.CONTENT_LENGTH_LIE: "Content-Length: 1000000",
}


async def send_raw(request: web.Request, reply: Reply, planted: Planted) -> None:
    headers = f"Content-Type: {reply.content_type}\r\n{RAW_BODIES[planted.fault]}"
    body = b"".join(reply.pieces)
    if planted.fault is Fault.GZIP_GARBAGE:
        body = b"\x1f\x8b" + b"garbage " * 20
    if planted.fault is Fault.CUT_AT_BYTE:
        body = body[: planted.at]
    if planted.fault is not Fault.CONTENT_LENGTH_LIE:
        body = b"%x\r\n%s\r\n" % (len(body), body)
    if planted.fault is Fault.CHUNKED_LIE:
        body += b"these are not hexadecimal digits\r\n"
    if planted.fault is Fault.GZIP_GARBAGE:
        body += b"0\r\n\r\n"
    _write(request, f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body)
    await _close(request)


def _write(request: web.Request, data: bytes) -> None:
    if request.transport is not None:
        request.transport.write(data)


async def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def _reset(request: web.Request) -> None:
    if request.transport is not None:
        await asyncio.sleep(0.05)  # let what was written leave first
        raw: socket.socket = request.transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


async def _stall(_: web.Request) -> None:
    await asyncio.Event().wait()  # until the client leaves


async def _slow_headers(request: web.Request) -> None:
    _write(request, b"HTTP/1.1 200 OK\r\nX-Padding: ")
    while True:
        _write(request, b"x")
        await asyncio.sleep(0.02)


async def _no_http(request: web.Request) -> None:
    _write(request, b"SSH-2.0-" + PROVIDER_WORDS.encode() + b"\r\n\r\n")
    await _close(request)


MISCHIEF: dict[Fault, Callable[[web.Request], Awaitable[None]]] = {
    Fault.CLOSE_BEFORE_HEADERS: _close,
    Fault.RESET_BEFORE_HEADERS: _reset,
    Fault.STALL_BEFORE_HEADERS: _stall,
    Fault.SLOW_HEADERS: _slow_headers,
    Fault.NOT_HTTP: _no_http,
}


# Realtime: sessions of one response.

SURE = "Sure! Let me tell you about something else entirely."


async def converse(
    request: web.Request,
    planted: Planted | None,
    pieces_of: Callable[[str], list[bytes]],
    on_event: Callable[[Any], None],
    delay_seconds: float,
) -> tuple[web.WebSocketResponse, bool]:
    """Serve one session; the second value is true where the client left without goodbye."""
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    await _tell(websocket, "session.created", session={"type": "realtime"})
    async for message in websocket:
        if message.type is not WSMsgType.TEXT:
            break
        order = orjson.loads(message.data)
        on_event(order)
        if order["type"] == "session.update":
            await _tell(websocket, "session.updated", session=order["session"])
        elif order["type"] == "response.create":
            text = order["response"]["input"][0]["content"][0]["text"]
            is_going_on = await _speak(request, websocket, planted, pieces_of(text), delay_seconds)
            if is_going_on:
                await _finish(websocket, planted, text)
            if planted is not None and planted.fault is Fault.NO_FINISH:
                break
    await websocket.close()
    return websocket, websocket.close_code == 1006


async def _speak(
    request: web.Request,
    websocket: web.WebSocketResponse,
    planted: Planted | None,
    pieces: list[bytes],
    delay_seconds: float,
) -> bool:
    fault, at = (planted.fault, planted.at) if planted else (None, -1)
    if fault is Fault.STALL_AFTER_HEADERS:
        return False
    if fault is Fault.REWORDED_FIRST:
        await _tell(websocket, "response.output_audio_transcript.done", transcript=SURE)
    for index, piece in enumerate([] if fault is Fault.EMPTY else pieces):
        if index == at and fault is not None and await _interrupt(request, websocket, fault):
            return False
        delta = "!!" if fault is Fault.BAD_BASE64 else base64.b64encode(piece).decode()
        await _tell(websocket, "response.output_audio.delta", delta=delta)
        await asyncio.sleep(delay_seconds)
    return True


async def _interrupt(request: web.Request, websocket: web.WebSocketResponse, fault: Fault) -> bool:
    """Do what a fault does between two pieces; true where nothing may follow."""
    if fault is Fault.RESET_AT_TOKEN:
        await _reset(request)
    if fault is Fault.INVALID_JSON_CHUNK:
        await websocket.send_str('{"type": oops')
    if fault is Fault.BARE_DATA:
        for frame in ("", " ", "{}", "null", "[]", '{"type": null}', '{"type": "ping"}'):
            await websocket.send_str(frame)
        await websocket.send_bytes(b"\0")
    if fault in ERRORS:
        await _tell(websocket, "error", **ERRORS[fault])
    return fault in ERRORS or fault in {Fault.RESET_AT_TOKEN, Fault.STALL_AT_TOKEN}


async def _finish(websocket: web.WebSocketResponse, planted: Planted | None, text: str) -> None:
    fault = planted.fault if planted else None
    if fault is Fault.NO_FINISH:
        return
    response: dict[str, Any] = {"status": "completed"}
    if fault is Fault.RESPONSE_FAILED:
        response = {"status": "failed", "status_details": ERRORS[Fault.ERROR_IN_STREAM_QUOTA]}
    if fault is Fault.RESPONSE_INCOMPLETE:
        response = {"status": "incomplete", "status_details": {"reason": "content_filter"}}
    transcript = SURE if fault is Fault.REWORDED else text
    await _tell(websocket, "response.output_audio_transcript.done", transcript=transcript)
    await _tell(websocket, "response.done", response=response)


async def _tell(websocket: web.WebSocketResponse, kind: str, **fields: Any) -> None:
    body = {"type": kind, "event_id": "event_1", **fields}
    await websocket.send_str(orjson.dumps(body).decode())
