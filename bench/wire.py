"""Minimal HTTP/1.1 connections: asyncio protocols with httptools' parser."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httptools
import orjson
import uvloop

T = TypeVar("T")


class ServerConnection(asyncio.Protocol):
    """The server's side of a keep-alive connection.

    `path`, `wants_events` and `body` are those of the current request.
    """

    def __init__(self, on_request: Callable[["ServerConnection"], None]) -> None:
        self.path = b""
        self.wants_events = False
        self.body = b""
        self.is_open = False
        self._on_request = on_request
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  # asyncio's own is narrower
        """Take the transport."""
        self._transport = transport
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        """Stop writing: the client is gone."""
        self.is_open = False

    def data_received(self, data: bytes) -> None:
        """Parse; the methods below are called for what is in `data`."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Reset the state of the previous request."""
        self.path, self.body, self.wants_events = b"", b"", False

    def on_url(self, url: bytes) -> None:
        """Add to the request's path."""
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Check for `Accept: text/event-stream`; other headers are ignored."""
        if value == b"text/event-stream" and name.lower() == b"accept":
            self.wants_events = True

    def on_body(self, body: bytes) -> None:
        """Add to the request's body."""
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        """Call `on_request` with the complete request."""
        self._on_request(self)

    def write(self, data: bytes) -> None:
        """Send bytes, unless the client has disconnected."""
        if self._transport and self.is_open:
            self._transport.write(data)


class ClientConnection(asyncio.Protocol):
    """The client's side of a keep-alive connection, with one request at a time."""

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[int] | None = None
        self._on_piece: Callable[[bytes], None] = _ignore

    @classmethod
    async def open(cls, port: int) -> "ClientConnection":
        """Connect to a loopback port."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(cls, "127.0.0.1", port))[1]

    async def exchange(self, request: bytes, on_piece: Callable[[bytes], None]) -> int:
        """Send a request; pass each piece of the response's body to `on_piece`; return the status.

        Raises `ConnectionError` if the server closes the connection before the response's end.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the server closed the connection")
        self._answered = asyncio.get_running_loop().create_future()
        self._on_piece = on_piece
        self._transport.write(request)
        return await self._answered

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  # asyncio's own is narrower
        """Take the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        """Fail the current exchange."""
        if self._answered and not self._answered.done():
            self._answered.set_exception(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Parse; the methods below are called for what is in `data`."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the response's body to `on_piece`."""
        self._on_piece(body)

    def on_message_complete(self) -> None:
        """Complete the exchange with the response's status."""
        if self._answered and not self._answered.done():
            self._answered.set_result(self._parser.get_status_code())

    def close(self) -> None:
        """Close the connection."""
        if self._transport:
            self._transport.close()


def post(path: str, body: bytes, *headers: str) -> bytes:
    """Return the bytes of a request whose body is JSON."""
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Return the bytes of a response whose body is JSON."""
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def chunk(body: bytes) -> bytes:
    """Return one chunk of a response that began with `STREAM_HEAD`."""
    return b"%x\r\n%s\r\n" % (len(body), body)


def get(path: str) -> bytes:
    """Return the bytes of a request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def text_turn(session_id: str, *, streams: bool = False, model: str | None = None) -> bytes:
    """Return the bytes of a request for a turn; `model` is for the floor, which has no agents."""
    fields = {"session_id": session_id, "content": "What happened then?"}
    body = orjson.dumps(fields | ({"model": model} if model else {}))
    return post("/messages/text", body, *(["Accept: text/event-stream"] if streams else []))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on uvloop and return its result."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _ignore(_piece: bytes) -> None:
    pass
