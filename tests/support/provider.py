"""A provider on loopback that speaks OpenAI's wire format and can be told to fail.

In a test: `with Provider() as provider:` and `provider.base_url`. For a server in another
process: `python -m tests.support.provider --port N`, then `POST /_control` and `GET /_requests`.
"""

import argparse
import asyncio
import math
import re
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import orjson
import uvloop
from aiohttp import web

from tests.support.provider_faults import (
    PROVIDER_WORDS,
    ChatStream,
    Fault,
    Planted,
    Reply,
    event,
    spoil_chat,
    spoil_reply,
    spoil_speech,
    status_of,
)
from tests.support.provider_wire import MISCHIEF, RAW_BODIES, converse, send, send_raw

__all__ = ["PROVIDER_WORDS", "Fault", "Provider", "Received"]

SAMPLE_RATE_HZ = 24_000
NOT_STREAMED = {
    Fault.IGNORES_STREAM,
    Fault.IGNORES_STREAM_NO_FINISH,
    Fault.JSON_AS_EVENTS,
}
ENDPOINTS = {
    "/v1/chat/completions": "chat",
    "/v1/audio/transcriptions": "transcription",
    "/v1/audio/speech": "speech",
    "/v1/realtime": "realtime",
    "/v1/models": "models",
}

Body = dict[str, Any]
Messages = list[dict[str, Any]]
ChatText = str | Sequence[str]


@dataclass(slots=True)
class Received:
    """One request as it came. `is_aborted`: the client left before the end of the answer."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    """Parsed JSON; for multipart the fields, with `file` as {filename, content_type, bytes}."""
    arrived_at: float
    peer_port: int
    """Equal for two requests of one connection."""
    events: list[Any] = field(default_factory=list[Any])
    """What came over the WebSocket."""
    is_ended: bool = False
    is_aborted: bool = False


@dataclass(slots=True)
class ChatScript:
    """How chat is answered. A list or a callable's list is one delta each; a string is cut."""

    text: ChatText | Callable[[Messages], ChatText] = "Hello! How can I help you today?"
    echo: bool = False
    """Quote the last user message instead."""
    model: str | None = None
    calls: Sequence[tuple[str, str]] = ()
    """Tools to call, with their arguments, where tools are offered and a user spoke last."""
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    completion_tokens: int | None = None
    first_byte_delay_seconds: float = 0
    token_delay_seconds: float = 0

    def deltas(self, messages: Messages) -> list[str]:
        text = self.text
        if self.echo:
            said = [line["content"] for line in messages if line["role"] == "user"]
            text = f'You said: "{said[-1] if said else ""}"'
        elif callable(text):
            text = text(messages)
        return re.findall(r"\s*\S+|\s+$", text) if isinstance(text, str) else list(text)


@dataclass(slots=True)
class TranscriptionScript:
    text: str = "What is the weather like today?"
    language: str | None = None
    first_byte_delay_seconds: float = 0
    streams: bool = False
    """Send events to who asks for them."""
    is_cut_off: bool = False
    """End the events before the last."""


@dataclass(slots=True)
class SpeechScript:
    """Serves `/v1/audio/speech` and `/v1/realtime`."""

    ms_per_character: float = 50
    piece_bytes: int = 4800
    first_byte_delay_seconds: float = 0
    piece_delay_seconds: float = 0

    def pcm(self, text: str) -> bytes:
        """A sine of 440 Hz, as long as it takes to say `text`."""
        count = round(len(text) * self.ms_per_character * SAMPLE_RATE_HZ / 1000)
        period = [
            round(8000 * math.sin(2 * math.pi * 440 * i / SAMPLE_RATE_HZ)) for i in range(600)
        ]
        wave = struct.pack("<600h", *period)  # eleven whole periods
        return (wave * (count // 600 + 1))[: count * 2]

    def pieces(self, pcm: bytes) -> list[bytes]:
        return [pcm[i : i + self.piece_bytes] for i in range(0, len(pcm), self.piece_bytes)]


class Provider:
    """The server, in a thread with an event loop of its own.

    `chat`, `transcription`, `speech` are scripts to change at will; `requests` holds what came,
    oldest first.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.port = port
        self._tls = tls
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_asked_to_stop = asyncio.Event()
        self._replies: dict[str, Callable[[Body, Planted | None], tuple[Reply, float]]] = {
            "chat": self._chat_reply,
            "transcription": self._transcription_reply,
            "speech": self._speech_reply,
            "models": self._models_reply,
        }
        self.reset()

    def reset(self) -> None:
        """Forget requests, faults and scripts."""
        self.requests: list[Received] = []
        self.planted: list[Planted] = []
        self.chat = ChatScript()
        self.transcription = TranscriptionScript()
        self.speech = SpeechScript()
        self.raw: dict[str, Reply] = {}
        """What an endpoint answers instead of what its script says."""
        self.refused_fields: dict[str, Reply] = {}
        """What chat answers to a request that has a field."""
        self.refusals: list[tuple[Callable[[Body], bool], Reply]] = []
        """What chat answers to a request with which something is true."""
        self.shutdown_dates: dict[str, object] = {}
        """What the list of models says of their ends, by model."""

    @property
    def base_url(self) -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/v1"

    def fail(
        self, fault: Fault | str, endpoint: str = "chat", *, times: int | None = 1, at: int = 2
    ) -> None:
        """Let the next `times` requests to `endpoint` suffer `fault`; `None` is for ever."""
        self.planted.append(Planted(Fault(fault), endpoint, times, at))

    def to(self, endpoint: str) -> list[Received]:
        """What came to one endpoint."""
        return [request for request in self.requests if ENDPOINTS.get(request.path) == endpoint]

    def wait_until(self, is_so: Callable[[], bool], timeout_seconds: float = 60) -> bool:
        """Block until what was recorded makes `is_so` true; not for an event loop's thread."""
        with self._changed:
            return self._changed.wait_for(is_so, timeout_seconds)

    # the thread

    def __enter__(self) -> Self:
        is_ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: uvloop.run(self.serve(is_ready.set)), name="provider", daemon=True
        )
        self._thread.start()
        assert is_ready.wait(60), "the provider did not start"
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self.stop)
        self._thread.join(10)

    def stop(self) -> None:
        """End `serve`; for its own thread."""
        self._is_asked_to_stop.set()

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Serve until stopped."""
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/_control", self._control)
        app.router.add_get("/_requests", self._list_requests)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self.port = listener.getsockname()[1]
        await web.SockSite(runner, listener, ssl_context=self._tls).start()
        on_ready()
        try:
            await self._is_asked_to_stop.wait()
        finally:
            await runner.cleanup()

    # control from outside

    async def _control(self, request: web.Request) -> web.Response:
        """`{reset?, chat?, transcription?, speech?, faults?: [{fault, endpoint, times, at}]}`."""
        orders: dict[str, Any] = orjson.loads(await request.read())
        if orders.get("reset"):
            self.reset()
        for name in ("chat", "transcription", "speech"):
            setattr(self, name, replace(getattr(self, name), **orders.get(name, {})))
        for fault in orders.get("faults", []):
            fault["fault"] = Fault(fault["fault"])
            fault.setdefault("endpoint", "chat")
            self.planted.append(Planted(**fault))
        return web.json_response({"ok": True})

    async def _list_requests(self, _: web.Request) -> web.Response:
        body = orjson.dumps([asdict(request) for request in self.requests], default=repr)
        return web.Response(body=body, content_type="application/json")

    # one request

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        received = await _receive(request)
        with self._changed:
            self.requests.append(received)
            self._changed.notify_all()
        try:
            return await self._answer(request, received)
        except asyncio.CancelledError:
            received.is_aborted = True
            raise
        except ConnectionError:
            received.is_aborted = True
            return web.Response()
        finally:
            received.is_ended = True
            with self._changed:
                self._changed.notify_all()

    async def _answer(self, request: web.Request, received: Received) -> web.StreamResponse:
        endpoint = ENDPOINTS.get(request.path, "")
        planted = self._take(endpoint)
        if planted is not None and (refusal := await self._refuse(request, planted)) is not None:
            return refusal
        if (raw := self._raw_reply(endpoint, received.body)) is not None:
            return await send(request, raw)
        if endpoint == "realtime":
            await asyncio.sleep(self.speech.first_byte_delay_seconds)
            return await self._realtime(request, received, planted)
        if (prepare := self._replies.get(endpoint)) is None:
            return web.Response(status=404, text=PROVIDER_WORDS)
        reply, delay_seconds = prepare(received.body, planted)
        if delay_seconds:
            await asyncio.sleep(delay_seconds)
        if planted is not None:
            reply = spoil_reply(reply, planted)
            if planted.fault in RAW_BODIES:
                await send_raw(request, reply, planted)
                return web.Response()
        return await send(request, reply)

    def _raw_reply(self, endpoint: str, body: Body) -> Reply | None:
        if endpoint == "chat":
            for name, refusal in self.refused_fields.items():
                if name in body:
                    return refusal
            for is_refused, refusal in self.refusals:
                if is_refused(body):
                    return refusal
        return self.raw.get(endpoint)

    async def _refuse(self, request: web.Request, planted: Planted) -> web.Response | None:
        """Do what a fault does instead of an answer of status 200; `None` where there is one."""
        if (status := status_of(planted)) is not None:
            code, headers, body = status
            return web.Response(
                status=code, headers=headers, body=body, content_type="application/json"
            )
        if planted.fault is Fault.REDIRECT:
            elsewhere = {"Location": f"http://127.0.0.1:{self.port}/elsewhere"}
            return web.Response(status=307, headers=elsewhere)
        if (mischief := MISCHIEF.get(planted.fault)) is not None:
            await mischief(request)
            return web.Response()
        return None

    async def _realtime(
        self, request: web.Request, received: Received, planted: Planted | None
    ) -> web.StreamResponse:
        def on_event(order: object) -> None:
            with self._changed:
                received.events.append(order)
                self._changed.notify_all()

        websocket, received.is_aborted = await converse(
            request,
            planted,
            lambda text: self.speech.pieces(self.speech.pcm(text)),
            on_event,
            self.speech.piece_delay_seconds,
        )
        return websocket

    def _take(self, endpoint: str) -> Planted | None:
        for index, planted in enumerate(self.planted):
            if planted.endpoint == endpoint:
                if planted.times == 1:
                    del self.planted[index]
                elif planted.times is not None:
                    self.planted[index] = replace(planted, times=planted.times - 1)
                return planted
        return None

    def _models_reply(self, _: Body, __: Planted | None) -> tuple[Reply, float]:
        models = [
            {"id": model, "object": "model", "owned_by": "test", "shutdown_date": end}
            for model, end in ({"gpt-6-luna": None} | self.shutdown_dates).items()
        ]
        return Reply("application/json", [orjson.dumps({"object": "list", "data": models})]), 0

    def _transcription_reply(self, body: Body, __: Planted | None) -> tuple[Reply, float]:
        script = self.transcription
        if script.streams and body.get("stream") == "true":
            deltas = re.findall(r"\s*\S+", script.text)
            pieces = [event({"type": "transcript.text.delta", "delta": each}) for each in deltas]
            if not script.is_cut_off:
                pieces.append(event({"type": "transcript.text.done", "text": script.text}))
            return Reply("text/event-stream", pieces), script.first_byte_delay_seconds
        transcript = {"text": script.text}
        if script.language is not None:
            transcript["language"] = script.language
        reply = Reply("application/json", [orjson.dumps(transcript)])
        return reply, script.first_byte_delay_seconds

    def _speech_reply(self, body: Body, planted: Planted | None) -> tuple[Reply, float]:
        script = self.speech
        pcm = script.pcm(body["input"])
        if planted is not None:
            pcm = spoil_speech(pcm, planted.fault)
        reply = Reply("audio/pcm", script.pieces(pcm), script.piece_delay_seconds)
        return reply, script.first_byte_delay_seconds

    def _chat_reply(self, body: Body, planted: Planted | None) -> tuple[Reply, float]:
        script = self.chat
        deltas = script.deltas(body["messages"])
        written = [line["content"] or "" for line in body["messages"]]
        prompt_tokens = sum(map(len, written)) // 4 + 1
        usage = {
            "prompt_tokens": script.prompt_tokens or prompt_tokens,
            "completion_tokens": script.completion_tokens or len(deltas),
            "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
        }
        fault = planted.fault if planted else None
        head = {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": script.model or body["model"],
        }
        if not body.get("stream") or fault in NOT_STREAMED:
            message = {"role": "assistant", "content": "".join(deltas)}
            reason = None if fault is Fault.IGNORES_STREAM_NO_FINISH else script.finish_reason
            choice = {"index": 0, "message": message, "finish_reason": reason}
            whole = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            label = "text/event-stream" if fault is Fault.JSON_AS_EVENTS else "application/json"
            reply = Reply(label, [orjson.dumps(whole)])
            return reply, script.first_byte_delay_seconds

        def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return event({**head, "choices": [choice], "usage": None})

        options: Any = body.get("stream_options")
        wants_usage = options and options.get("include_usage")
        stream = ChatStream(
            head=chunk({"role": "assistant", "content": ""}),
            tokens=[chunk({"content": delta}) for delta in deltas],
            finish=chunk({}, script.finish_reason),
            usage=event({**head, "choices": [], "usage": usage}) if wants_usage else b"",
        )
        if script.calls and body.get("tools") and body["messages"][-1]["role"] == "user":
            stream.tokens = [
                chunk({"tool_calls": [each]}) for each in _tool_call_pieces(script.calls)
            ]
            stream.finish = chunk({}, "tool_calls")
        if planted is not None:
            spoil_chat(stream, planted)
        reply = Reply(
            "text/event-stream; charset=utf-8",
            stream.pieces(),
            script.token_delay_seconds,
            stream.after,
        )
        return reply, script.first_byte_delay_seconds


def _tool_call_pieces(calls: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return calls as OpenAI streams them: id and name first, then the arguments in pieces."""
    pieces: list[dict[str, Any]] = []
    for index, (name, arguments) in enumerate(calls):
        begun = {"name": name, "arguments": ""}
        pieces.append(
            {"index": index, "id": f"call_{index}", "type": "function", "function": begun}
        )
        pieces += [
            {"index": index, "function": {"arguments": arguments[start : start + 5]}}
            for start in range(0, len(arguments), 5)
        ]
    return pieces


async def _receive(request: web.Request) -> Received:
    assert request.transport is not None
    content_type = request.content_type
    body: Any = None
    if content_type == "multipart/form-data":
        body = {}
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                with value.file as file:
                    data = file.read()
                body[name] = {
                    "filename": value.filename,
                    "content_type": value.content_type,
                    "bytes": data,
                }
            else:
                body[name] = value
    elif raw := await request.read():
        body = orjson.loads(raw) if content_type == "application/json" else raw
    return Received(
        method=request.method,
        path=request.path,
        query=dict(request.query),
        headers={str(name): value for name, value in request.headers.items()},
        body=body,
        arrived_at=time.monotonic(),
        peer_port=request.transport.get_extra_info("peername")[1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI-compatible provider for tests.")
    parser.add_argument("--port", type=int, default=0)
    provider = Provider(parser.parse_args().port)

    def announce() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, provider.stop)
        print(provider.base_url, flush=True)  # noqa: T201  # whoever started it waits for this

    uvloop.run(provider.serve(announce))


if __name__ == "__main__":
    main()
