"""One connection of HTTP/1.1 to a provider: a parser in C, and little else.

Each wait has a deadline, in seconds of the event loop's clock; the timer for it costs a fraction
of `asyncio.timeout`.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import httptools
from multidict import CIMultiDict

BUFFER_BYTES = 256 << 10
"""Above this a server that writes faster than we read has to wait."""
_MAX_HEADER_BYTES = 64 << 10
_SENT_AT_ONCE_BYTES = 256 << 10
"""What is larger goes in pieces, as fast as the server takes them."""
_PIECE_BYTES = 64 << 10
_CONTINUE = range(100, 200)


def _pieces(request: tuple[bytes, ...]) -> Iterable[bytes | memoryview]:
    if sum(map(len, request)) <= _SENT_AT_ONCE_BYTES:
        return (b"".join(request),)
    return (
        memoryview(part)[start : start + _PIECE_BYTES]
        for part in request
        for start in range(0, len(part), _PIECE_BYTES)
    )


class NotHttpError(Exception):
    """What came is no HTTP response."""


class ConnectTimeoutError(TimeoutError):
    """No connection was made in time; no request was sent."""


class Connection(asyncio.Protocol):
    """A connection; one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.is_complete = False
        self.has_answered = False
        """True once a byte of the response is here."""
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._header_bytes = 0
        self._buffer: list[bytes] = []
        self.on_body = self._buffer.append
        """For the parser; a streamed answer is many small pieces."""
        self._buffer_bytes = 0
        """How much has come since the buffer was emptied."""
        self._is_paused = False
        self._may_write = True
        self._is_sent = False
        self._keeps_alive = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[bool] | None = None
        """Gets whether something happened in time."""

    @property
    def is_usable(self) -> bool:
        """True while the server keeps the connection open and says nothing unasked."""
        return self._error is None and self._transport is not None

    @property
    def may_be_kept(self) -> bool:
        """True once request and response are over, and the server waits for another."""
        is_over = self.is_complete and self._is_sent and self._keeps_alive
        return is_over and not (self._transport and self._transport.get_write_buffer_size())

    async def send(self, request: tuple[bytes, ...], deadline: float) -> None:
        """Send a request, and wait for the response's head.

        What answers before it has everything is sent no more. Broken off where that fails, or
        where it is cancelled.
        """
        self.status = 0
        self.headers = CIMultiDict()
        self.is_complete = self.has_answered = self._is_sent = self._keeps_alive = False
        self._header_bytes = 0
        self._buffer.clear()
        self._buffer_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        if self._transport is None or self._error:
            raise self._error or ConnectionResetError("the connection is closed")
        try:
            await self._write(request, deadline)
            while not self.status:
                await self._wait(deadline)
        except BaseException:
            self.abort()
            raise

    async def _write(self, request: tuple[bytes, ...], deadline: float) -> None:
        for piece in _pieces(request):
            while not self._may_write and not self.status:
                await self._wait(deadline)
            if self.status or self._transport is None:
                return
            self._transport.write(piece)
        self._is_sent = True

    async def read_any(self, deadline: float) -> bytes:
        """Return what has come of the body, waiting where nothing has; `b""` is its end."""
        if isinstance(self._error, NotHttpError):  # then what came before it is no answer either
            raise self._error
        while not self._buffer:
            if self.is_complete:
                return b""
            await self._wait(deadline)
        piece = self._buffer[0] if len(self._buffer) == 1 else b"".join(self._buffer)
        self._buffer.clear()
        self._buffer_bytes = 0
        if self._is_paused and self._transport:
            self._is_paused = False
            self._transport.resume_reading()
        return piece

    def abort(self) -> None:
        """Close at once, whatever is still to be sent."""
        self._error = self._error or ConnectionAbortedError("we closed the connection")
        if self._transport:
            self._transport.abort()
            self._transport = None

    async def _wait(self, deadline: float) -> None:
        if self._error:
            raise self._error
        self._waiter = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._wake, False)  # noqa: FBT003
        try:
            if not await self._waiter:
                raise TimeoutError
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self, is_in_time: bool = True) -> None:  # noqa: FBT001, FBT002  # called by a timer
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(is_in_time)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    # What asyncio calls.

    def pause_writing(self) -> None:
        """Wait: the server takes less than we send."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Go on."""
        self._may_write = True
        self._wake()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401  # asyncio's own is narrower
        """Take the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse; the methods below are called for what is in `data`."""
        if self._parser is None or self.is_complete:
            self.abort()  # nobody asked
            return
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, NotHttpError):
            self._fail(NotHttpError("the response is not HTTP"))
            return
        self._buffer_bytes += len(data)
        is_full = self._buffer and self._buffer_bytes > BUFFER_BYTES
        if is_full and not self._is_paused and self._transport:
            self._is_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """End a body that goes to the end of the connection."""
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is not complete."""
        self._transport = None
        if exc is None:
            self._end()
        self._fail(ConnectionResetError("the server closed the connection"))

    def _end(self) -> None:
        ends_with_connection = self.status and not (
            "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        )
        if ends_with_connection and not self.is_complete and self._error is None:
            self.is_complete = True
            self._wake()

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise NotHttpError("the headers are longer than any can be")
        self.headers.add(name.decode("latin-1"), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """Take the status; "100 Continue" and its like come before the response."""
        status: int = self._parser.get_status_code()
        if status in _CONTINUE:
            self.headers = CIMultiDict()
            return
        self.status = status

    def on_message_complete(self) -> None:
        """End the response."""
        if self.status:
            self.is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()
