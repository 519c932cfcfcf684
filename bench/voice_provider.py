"""A provider with configured delays for transcriptions, chat and speech.

`python -m bench.voice_provider PORT STT_MS FIRST_TOKEN_MS TOKEN_MS SPEECH_MS`. `GET /counts`
returns the number of requests. Speech is 50 ms of a tone for each character, in one piece.
"""

import array
import asyncio
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import orjson

from bench.wire import STREAM_END, STREAM_HEAD, ServerConnection, answer, chunk, run

QUESTION = "What happened then?"
ANSWER = (
    "Steam engines were loud, slow and hungry. They filled the mills with work and smoke. "
    "Rivers had turned those wheels before, and nobody had paid for the rain. "
    "Coal changed the price of everything. Towns grew where the seams were thick. "
    "Children learned the names of valves. Some of them built better ones. "
    "A railway followed within twenty years. It carried letters faster than any horse. "
    "That is how the century began to hurry."
)
"""Ten sentences."""
SAMPLE_RATE_HZ = 24_000
SAMPLES_PER_CHARACTER = SAMPLE_RATE_HZ // 20


def tokens() -> Sequence[str]:
    """Return the answer as tokens: each word with the space before it."""
    return re.findall(r"\s*\S+", ANSWER)


@cache
def _tone() -> bytes:
    period = [round(8000 * math.sin(2 * math.pi * 440 * i / SAMPLE_RATE_HZ)) for i in range(600)]
    return array.array("h", period * 2000).tobytes()


@cache
def _chat_chunks() -> list[bytes]:
    head: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "created": 1}
    head["model"] = "voice"
    chunks = [
        _event(head | {"choices": [{"index": 0, "delta": {"content": token}}]})
        for token in tokens()
    ]
    ending: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
    finish = _event(head | {"choices": [ending]})
    return [*chunks, finish + chunk(b"data: [DONE]\n\n") + STREAM_END]


def _event(data: object) -> bytes:
    return chunk(b"data: " + orjson.dumps(data) + b"\n\n")


@dataclass(slots=True)
class _Provider:
    stt_seconds: float
    first_token_seconds: float
    token_seconds: float
    speech_seconds: float
    counts: Counter[str] = field(default_factory=Counter[str])

    def serve(self, connection: ServerConnection) -> None:
        path = connection.path.decode().rpartition("/")[2]
        if path == "counts":
            connection.write(answer(orjson.dumps(self.counts)))
            return
        self.counts[path] += 1
        if path == "transcriptions":
            _after(self.stt_seconds, connection, answer(orjson.dumps({"text": QUESTION})))
        elif path == "completions":
            self._chat(connection)
        elif path == "speech":
            text = orjson.loads(connection.body)["input"]
            pcm = _tone()[: 2 * SAMPLES_PER_CHARACTER * len(text)]
            head = b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nContent-Length: %d\r\n\r\n"
            _after(self.speech_seconds, connection, head % len(pcm) + pcm)
        else:
            connection.write(answer(b"{}"))

    def _chat(self, connection: ServerConnection) -> None:
        if not self.first_token_seconds:
            connection.write(STREAM_HEAD + b"".join(_chat_chunks()))
            return
        connection.write(STREAM_HEAD)
        for number, piece in enumerate(_chat_chunks()):
            _after(self.first_token_seconds + number * self.token_seconds, connection, piece)


def _after(seconds: float, connection: ServerConnection, body: bytes) -> None:
    if seconds:
        asyncio.get_running_loop().call_later(seconds, connection.write, body)
    else:
        connection.write(body)


async def _listen(port: int, stt: float, first: float, each: float, speech: float) -> None:
    provider = _Provider(stt / 1000, first / 1000, each / 1000, speech / 1000)
    loop = asyncio.get_running_loop()
    make = partial(ServerConnection, provider.serve)
    server = await loop.create_server(make, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    run(_listen(int(sys.argv[1]), *map(float, sys.argv[2:])))
