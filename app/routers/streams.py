"""Turn events as server-sent events: numbered, with heartbeats, and cut where nobody reads."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import anyio
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from typing_extensions import override

from app.core.database import Database, StorageUnavailable
from app.core.errors import AppError
from app.routers.connections import READER_IS_TIMED
from app.services.identity import OpenStreams
from app.services.turns import LiveTurn, TurnEngine, TurnEvent, follow
from app.services.turns.errors import ServerDraining
from app.services.turns.events import NAMES

SSE_TYPE = "text/event-stream"
SSE_CONTENT: dict[str, Any] = {
    SSE_TYPE: {
        "schema": {
            "type": "object",
            "description": "One event; `data` is a line of JSON.",
            "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
        }
    }
}
"""How the OpenAPI document describes a stream."""

_SEND_SECONDS = 20
"""A reader that takes nothing for this long is cut off; its turn goes on."""
_HEARTBEAT = b": still here\n\n"

OnDisconnect = Callable[[], Awaitable[None]]


def wants_events(request: Request) -> bool:
    """Tell whether the client asked for a stream."""
    return SSE_TYPE in request.headers.get("accept", "")


class EventStream(Response):
    """Streams a turn's events above `after` to its terminal one, or until this server drains."""

    media_type = SSE_TYPE

    def __init__(  # noqa: PLR0913  # keyword arguments all
        self,
        *,
        engine: TurnEngine,
        database: Database,
        live: LiveTurn,
        after: int = 0,
        on_disconnect: OnDisconnect | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        kept = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=kept | (headers or {}), media_type=SSE_TYPE)
        # A stream has no length beforehand.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._engine = engine
        self._database = database
        self._live = live
        self._after = after
        self._on_disconnect = on_disconnect

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0)  # a turn that has just begun asks its model before this is written
        head = {"status": 200, "headers": self.raw_headers}
        state: dict[str, Any] = scope["state"]
        send = send if state.get(READER_IS_TIMED) else _timed(send)
        open_streams: OpenStreams = state["open_streams"]
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
                has_left = True  # it reads nothing; cut without an end
                raise
            group.cancel_scope.cancel()
        if has_left and self._on_disconnect:
            await self._on_disconnect()

    async def _send_events(self, send: Send) -> None:
        """Send what the turn says; `send` gives up a reader that takes nothing."""
        stream = follow(self._engine, self._database, self._live, self._after)
        try:
            async with aclosing(stream) as batches:
                async for events in batches:
                    await send(_piece(_write(events)))
        except ServerDraining:
            await send(_piece(b"event: server.draining\ndata: {}\n\n"))
        except (AppError, StorageUnavailable) as error:
            await _send_error(send, error)
            return
        await send({"type": "http.response.body", "body": b""})


async def _send_error(send: Send, error: AppError) -> None:
    """End the stream without a terminal event: the client asks `GET /turns/{id}`."""
    told = orjson.dumps({"code": error.code, "detail": error.detail})
    await send(_piece(b"event: error\ndata: " + told + b"\n\n"))
    await send({"type": "http.response.body", "body": b""})


def _piece(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _timed(send: Send) -> Send:
    """Give up, with `TimeoutError`, a reader that takes nothing for long."""

    async def send_in_time(message: Message) -> None:
        with anyio.fail_after(_SEND_SECONDS):
            await send(message)

    return send_in_time


def _write(events: Sequence[TurnEvent]) -> bytes:
    if not events:
        return _HEARTBEAT
    return b"".join([
        b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, NAMES[event.type], event.data)
        for event in events
    ])  # fmt: skip


async def until_left(request: Request, left: Callable[[], Awaitable[None]]) -> None:
    """Wait until the client is gone, then call `left`; cancelled when it is not needed."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    await left()
