"""HTTP connections with deadlines: who sends or reads too slowly is cut, and hurts nobody else.

uvicorn bounds only the idle time after a response. A client could otherwise open connections and
send nothing, or a header a minute, for ever. The time for bodies is `strict_route.py`'s.
"""

import asyncio
from typing import Any, cast

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_HEADERS_SECONDS = 10.0
_HEADERS_BYTES = 64 * 1024
_READER_SECONDS = 20.0
"""How long a full send buffer may wait for its reader to take about 48 KB."""
_UNREAD_BODY_SECONDS = 5.0
"""How long a client may go on with a body after its answer; cut at once, it would not read that."""
_SHUTDOWN_BODY_SECONDS = 10.0

BODY_IS_HERE = "body_is_here"
"""In a request's state once nothing more of it is to come; other servers do not say so."""
READER_IS_TIMED = "reader_is_timed"
"""In a request's state where a client that takes nothing of its answer is cut by the connection."""

_HEADERS_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class _JoinedWrites:
    """A transport whose writes of one turn of the event loop go out as one.

    uvicorn writes a response's head and body apart, and each write is a system call: the dearest
    thing that a short answer does.
    """

    __slots__ = ("_loop", "_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send soon."""
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def close(self) -> None:
        """Send what waits, and close."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever transports have
        return getattr(self._transport, name)

    def _send(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._transport.write(data)


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, whose patience with slow peers has an end."""

    _deadline: asyncio.TimerHandle | None = None
    """For what the peer must send next: headers, or the rest of a body that nobody reads."""
    _reader_deadline: asyncio.TimerHandle | None = None
    _has_begun = False
    """True from the first byte of a request until its headers are complete."""
    _header_bytes = 0

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(cast("asyncio.Transport", _JoinedWrites(transport, self.loop)))
        self._expect_within(_HEADERS_SECONDS)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._reader_has_time()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._has_begun:
            self._header_bytes += len(data)
            if self._header_bytes > _HEADERS_BYTES:
                self.transport.write(_HEADERS_TOO_LARGE)
                self.transport.close()
                return
        cycle = self._cycle
        is_idle = cycle is None or cycle.response_complete
        # Also where only line breaks come, which begin nothing and end the idle time.
        if (self._has_begun or is_idle) and not self._deadline:
            self._expect_within(_HEADERS_SECONDS)

    @override
    def on_message_begin(self) -> None:
        self._has_begun = True
        self._header_bytes = 0
        super().on_message_begin()

    @override
    def on_headers_complete(self) -> None:
        self._has_begun = False
        self._expect_nothing()
        self.scope.setdefault("state", {})[READER_IS_TIMED] = True
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        self.scope.setdefault("state", {})[BODY_IS_HERE] = True
        super().on_message_complete()
        if self.cycle.response_complete:
            self._expect_nothing()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reader()
        elif self.cycle.response_complete and self.cycle.more_body:
            self._expect_within(_UNREAD_BODY_SECONDS)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    @override
    def resume_writing(self) -> None:
        self._reader_has_time()
        super().resume_writing()

    @override
    def timeout_keep_alive_handler(self) -> None:
        self._cut()

    @override
    def shutdown(self) -> None:
        super().shutdown()
        cycle = self._cycle
        if cycle and cycle.more_body and not cycle.response_started:
            self._expect_within(_SHUTDOWN_BODY_SECONDS)

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # `None` before the first request, whatever its type says

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._cut)

    def _expect_nothing(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _expect_reader(self) -> None:
        if not self._reader_deadline:
            self._reader_deadline = self.loop.call_later(_READER_SECONDS, self._cut)

    def _reader_has_time(self) -> None:
        if self._reader_deadline:
            self._reader_deadline.cancel()
            self._reader_deadline = None

    def _cut(self) -> None:
        # `close` would wait until everything is read.
        if self.transport:
            self.transport.abort()
