"""Lines of an application in the test's own process, on both databases."""

import base64
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.main import create_app
from app.services.audio.samples import HEADER_BYTES, to_pcm16
from app.services.audio.silero import Floats
from app.services.audio.stream_resample import StreamResampler
from app.state import State
from tests.support.application import AUDIO
from tests.support.websocket import WebSocket, scope_of

OpenLine = Callable[..., AbstractAsyncContextManager[WebSocket]]
FRAME_BYTES = 960
"""20 ms of PCM at 24 kHz, as microphones send it."""


@pytest.fixture
def open_line(settings: Settings, state: State) -> OpenLine:
    """Open a WebSocket: `async with open_line("model=agent-ada") as line`."""
    return line_of(settings, state)


def line_of(settings: Settings, state: State) -> OpenLine:
    @asynccontextmanager
    async def never_opened(_settings: Settings) -> AsyncGenerator[State]:
        raise AssertionError("the state is the fixture's")
        yield

    app = create_app(settings, never_opened)

    async def app_with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict[str, Any](state)}, receive, send)

    def open_line(
        query: str = "model=any",
        path: str = "/v1/realtime",
        unread_events: int = 10_000,
        **scope: Any,
    ) -> AbstractAsyncContextManager[WebSocket]:
        return WebSocket(unread_events).running(app_with_state, scope_of(path, query, **scope))

    return open_line


@pytest.fixture(scope="session")
def spoken() -> bytes:
    """Three seconds of clear speech: PCM of 24 kHz."""
    data = (AUDIO / "anna_01.wav").read_bytes()
    samples = np.frombuffer(data[HEADER_BYTES:], "<i2").astype(np.float32) / np.float32(32768)
    return to_pcm16(StreamResampler(16_000, 24_000).feed(samples))


def silence(milliseconds: int) -> bytes:
    return bytes(48 * milliseconds)


async def say(line: WebSocket, pcm: bytes) -> None:
    """Send sound as a microphone does, but as fast as it is taken."""
    for start in range(0, len(pcm), FRAME_BYTES):
        audio = base64.b64encode(pcm[start : start + FRAME_BYTES]).decode()
        await line.send("input_audio_buffer.append", audio=audio)


async def ask(line: WebSocket, text: str, **response: Any) -> dict[str, Any]:
    """Send a message and return the response that answers it."""
    await send_message(line, text)
    await line.send("response.create", **({"response": response} if response else {}))
    done = await line.until("response.done")
    return done["response"]


async def send_message(line: WebSocket, text: str, role: str = "user", **item: Any) -> None:
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text}]
    await line.send(
        "conversation.item.create",
        item={"type": "message", "role": role, "content": content, **item},
    )


async def configure(line: WebSocket, **session: Any) -> dict[str, Any]:
    await line.send("session.update", session={"type": "realtime", **session})
    updated = await line.until("session.updated")
    return updated["session"]


async def without_detection(line: WebSocket) -> None:
    await configure(line, audio={"input": {"turn_detection": None}})


def floats(pcm: bytes) -> Floats:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)
