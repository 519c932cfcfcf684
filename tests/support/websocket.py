"""A WebSocket of the application in the test's own process, without a socket."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import orjson
from starlette.types import ASGIApp, Message

WAIT_SECONDS = 60
"""Only ends a test that fails."""


class UpgradeRefused(Exception):
    """The handshake was answered with an HTTP error."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(status, body)
        self.status = status
        self.error: dict[str, Any] = body["error"]
        self.headers = headers


class Closed(Exception):
    """The server has closed the connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class WebSocket:
    """The client's side. `events` has all that came, oldest first."""

    def __init__(self, unread_events: int = 10_000) -> None:
        """`unread_events` may wait here until the server's sending waits, too."""
        self.events: list[dict[str, Any]] = []
        self.subprotocol: str | None = None
        self._to_server: asyncio.Queue[Message] = asyncio.Queue(1000)
        self._from_server: asyncio.Queue[Message] = asyncio.Queue(unread_events)

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_text(orjson.dumps({"type": kind, **fields}).decode())

    async def send_text(self, text: str) -> None:
        await self._to_server.put({"type": "websocket.receive", "text": text})

    async def send_bytes(self, data: bytes) -> None:
        await self._to_server.put({"type": "websocket.receive", "bytes": data})

    async def receive(self) -> dict[str, Any]:
        """Return the next event. Raises `Closed`."""
        with anyio.fail_after(WAIT_SECONDS):
            message = await self._from_server.get()
        if message["type"] == "websocket.close":
            raise Closed(message["code"], message.get("reason", ""))
        event: dict[str, Any] = orjson.loads(message["text"])
        self.events.append(event)
        return event

    async def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Return the next event of this type, or the `count`-th one."""
        while True:
            event = await self.receive()
            count -= event["type"] == kind
            if not count:
                return event

    async def until_closed(self) -> Closed:
        while True:
            try:
                await self.receive()
            except Closed as closed:
                return closed

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def leave(self) -> None:
        """Disconnect, as a client that dies does."""
        self._to_server.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def _serve(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        await app(scope, self._to_server.get, self._from_server.put)

    @asynccontextmanager
    async def running(self, app: ASGIApp, scope: dict[str, Any]) -> AsyncGenerator["WebSocket"]:
        """Open the connection, and close it after the block. Raises `UpgradeRefused`."""
        refusal: UpgradeRefused | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._serve, app, scope)
            await self._to_server.put({"type": "websocket.connect"})
            with anyio.fail_after(WAIT_SECONDS):
                first = await self._from_server.get()
                if first["type"] == "websocket.http.response.start":
                    body = await self._from_server.get()
                    headers = {name.decode(): value.decode() for name, value in first["headers"]}
                    refusal = UpgradeRefused(first["status"], orjson.loads(body["body"]), headers)
                    group.cancel_scope.cancel()
                elif first["type"] == "websocket.close":  # which a server answers with 403
                    refusal = UpgradeRefused(403, {"error": {}}, {})
            if refusal is None:
                assert first["type"] == "websocket.accept", first
                self.subprotocol = first.get("subprotocol")
                try:
                    yield self
                finally:
                    self.leave()
        if refusal:
            raise refusal


def scope_of(
    path: str,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    subprotocols: Sequence[str] = (),
    peer: str = "127.0.0.1",
) -> dict[str, Any]:
    pairs = {"host": "test", **(headers or {})}
    return {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws",
        "server": ("test", 80),
        "client": (peer, 50000),
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
        "subprotocols": list(subprotocols),
        "extensions": {"websocket.http.response": {}},
    }
