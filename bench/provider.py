"""A chat provider without latency of its own: `POST /v1/chat/completions`, streamed.

The model's name selects the answer: `tokens-20` sends 20 tokens at once in one write,
`tokens-20-every-10-ms` sends them one by one. With tools, it calls the first one. Any other
request is a tool's, and is answered with `{}`. Run it with `python -m bench.provider PORT`.
"""

import asyncio
import re
import sys
from functools import cache, partial
from typing import Any

import orjson

from bench.wire import STREAM_END, STREAM_HEAD, ServerConnection, answer, chunk, run

_MODEL = re.compile(rb'"model":\s*"(tokens-(\d+)(?:-every-(\d+)-ms)?)"')
_TOOL = re.compile(rb'"name":\s*"(\w+)"')
_WORDS = (" the", " history", " of", " engines", " begins", " with", " steam", " and", " rain")


@cache
def _chunks(model: str, count: int) -> list[bytes]:
    """Return the HTTP chunks of an answer: role, each token, finish and usage, `[DONE]`."""
    head: dict[str, Any] = {"id": "chatcmpl-bench", "object": "chat.completion.chunk"}
    head |= {"created": 1_700_000_000, "model": model}
    deltas = [{"content": _WORDS[number % len(_WORDS)]} for number in range(count)]
    shapes: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        *({"choices": [{"index": 0, "delta": delta}]} for delta in deltas),
    ]
    usage = {"prompt_tokens": 300, "completion_tokens": count, "total_tokens": 300 + count}
    last: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    pieces = [_event(head | shape) for shape in shapes]
    ending = b"".join(_event(head | shape) for shape in last)
    return [*pieces, ending + chunk(b"data: [DONE]\n\n") + STREAM_END]


@cache
def _at_once(model: str, count: int) -> bytes:
    return STREAM_HEAD + b"".join(_chunks(model, count))


def _event(data: object) -> bytes:
    return chunk(b"data: " + orjson.dumps(data) + b"\n\n")


def _serve(connection: ServerConnection) -> None:
    match = _MODEL.search(connection.body)
    if match is None:
        connection.write(answer(b"{}"))
        return
    if b'"tools":' in connection.body and not _ends_with_result(connection.body):
        match_tool = _TOOL.search(connection.body)
        connection.write(_call(match_tool[1].decode() if match_tool else "work"))
        return
    model, count, pause_ms = match[1].decode(), int(match[2]), int(match[3] or 0)
    if pause_ms:
        connection.write(STREAM_HEAD)
        _send_each(connection, _chunks(model, count), pause_ms / 1000)
    else:
        connection.write(_at_once(model, count))


def _ends_with_result(body: bytes) -> bool:
    """Tell whether the last message is the result of a tool."""
    last = max(body.rfind(b'"role":"user"'), body.rfind(b'"role": "user"'))
    return max(body.rfind(b'"role":"tool"'), body.rfind(b'"role": "tool"')) > last


@cache
def _call(name: str) -> bytes:
    """Return an answer that calls the tool `name`."""
    head: dict[str, Any] = {"id": "chatcmpl-bench", "object": "chat.completion.chunk"}
    head |= {"created": 1_700_000_000, "model": "tokens-20"}
    function = {"name": name, "arguments": "{}"}
    call = {"index": 0, "id": "call_1", "type": "function", "function": function}
    usage = {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320}
    shapes: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [call]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": usage},
    ]
    pieces = b"".join(_event(head | shape) for shape in shapes)
    return STREAM_HEAD + pieces + chunk(b"data: [DONE]\n\n") + STREAM_END


def _send_each(connection: ServerConnection, chunks: list[bytes], pause_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    first_at = loop.time()
    for number, piece in enumerate(chunks):
        loop.call_at(first_at + number * pause_seconds, connection.write, piece)


async def _listen(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(ServerConnection, _serve), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    run(_listen(int(sys.argv[1])))
