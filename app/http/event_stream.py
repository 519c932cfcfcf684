"""Turn events as server-sent events, with numbers, heartbeats and a write deadline."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import anyio
import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from app.core.database import Database
from app.core.errors import AppError
from app.http.content_negotiation import EVENT_STREAM_TYPE
from app.http.disconnection import DisconnectCallback
from app.http.protocol import HAS_WRITE_DEADLINE
from app.services.identity import OpenStreamRegistry
from app.services.turns import LiveTurn, TurnEngine, TurnEvent, subscribe
from app.services.turns.errors import ServerDraining

_SEND_SECONDS = 20
"""A client that reads nothing for this long is disconnected; its turn continues."""
HEARTBEAT = b": still here\n\n"
DRAINING_FRAME = b"event: server.draining\ndata: {}\n\n"


class EventStream(Response):
    """Streams a turn's events after the number `after`, up to its last or until a shutdown."""

    media_type = EVENT_STREAM_TYPE

    def __init__(  # noqa: PLR0913  # keyword arguments all
        self,
        *,
        engine: TurnEngine,
        database: Database,
        live: LiveTurn,
        after: int = 0,
        on_disconnect: DisconnectCallback | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        stream_headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=stream_headers | (headers or {}), media_type=EVENT_STREAM_TYPE)
        # A stream has no length beforehand.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._engine = engine
        self._database = database
        self._live = live
        self._after = after
        self._on_disconnect = on_disconnect

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)  # lets a new turn send its request to the model first
        head = {"status": 200, "headers": self.raw_headers}
        state: dict[str, Any] = scope["state"]
        send = send if state.get(HAS_WRITE_DEADLINE) else with_write_deadline(send)
        open_streams: OpenStreamRegistry = state["open_streams"]
        has_left = False
        refused: AppError | None = None
        events = anyio.CancelScope()

        def cut(refusal: AppError) -> None:
            nonlocal refused
            refused = refusal
            events.cancel()

        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal has_left
                while (await receive())["type"] != "http.disconnect":
                    pass
                has_left = True
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await send({"type": "http.response.start", **head})
            try:
                with open_streams.cut_when_refused(state["caller"], cut), events:
                    await self._send_events(send)
                if refused:
                    await _send_error(send, refused)
            except TimeoutError:
                has_left = True  # the client reads nothing: disconnect without a last chunk
                raise
            group.cancel_scope.cancel()
        if has_left and self._on_disconnect:
            await self._on_disconnect()

    async def _send_events(self, send: Send) -> None:
        """Send the turn's events; `send` raises `TimeoutError` if the client stops reading."""
        stream = subscribe(self._engine, self._database, self._live, self._after)
        try:
            async with aclosing(stream) as batches:
                async for events in batches:
                    await send(_body_chunk(_encode_events(events)))
        except ServerDraining:
            await send(_body_chunk(DRAINING_FRAME))
        except AppError as error:
            await _send_error(send, error)
            return
        await send({"type": "http.response.body", "body": b""})


async def _send_error(send: Send, error: AppError) -> None:
    """End the stream with an `error` event; the client gets the outcome from `GET /turns/{id}`."""
    await send(_body_chunk(error_frame(error)))
    await send({"type": "http.response.body", "body": b""})


def error_frame(error: AppError) -> bytes:
    """Return the `error` event that ends a stream."""
    data = orjson.dumps({"code": error.code, "detail": error.detail})
    return b"event: error\ndata: " + data + b"\n\n"


def _body_chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def with_write_deadline(send: Send) -> Send:
    """Return a `send` that raises `TimeoutError` if the client reads nothing for 20 s."""

    async def send_in_time(message: Message) -> None:
        with anyio.fail_after(_SEND_SECONDS):
            await send(message)

    return send_in_time


def _encode_events(events: Sequence[TurnEvent]) -> bytes:
    if not events:
        return HEARTBEAT
    return b"".join([
        b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.name, event.json)
        for event in events
    ])  # fmt: skip
