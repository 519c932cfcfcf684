"""An HTTP protocol for uvicorn with deadlines, which closes connections of too slow clients.

uvicorn limits only the idle time after a response. Without deadlines a client could keep
connections open for ever, sending nothing or a header a minute. `endpoint_route.py` has the
deadline for bodies.
"""

import asyncio
import sys
from typing import Any, cast

from httptools import HttpRequestParser  # pyright: ignore[reportMissingTypeStubs]  # it has none
from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from websockets.http11 import MAX_LINE_LENGTH, MAX_NUM_HEADERS

from app.http.local_requests import CONNECTION_CACHE

_HEADERS_SECONDS = 10.0
_HEADERS_BYTES = 64 * 1024
_SLACK = 64
"""Bytes of a line that a WebSocket's reader may count and we do not."""
_READER_SECONDS = 20.0
"""How long a full send buffer may wait until the client has read about 48 KB."""
_UNREAD_BODY_SECONDS = 5.0
"""How long a client may keep sending a body after the response. If the connection were closed at
once, the client would not read the response."""
_SHUTDOWN_BODY_SECONDS = 10.0
WEBSOCKET_MESSAGE_BYTES = 16 << 20
"""The largest message that a WebSocket's client may send."""

BODY_IS_COMPLETE = "body_is_here"
"""A key in a request's state, set once the body is complete; other servers do not set it."""
ABORT_CONNECTION = "abort_connection"
"""A key in a request's state: aborts its connection, for a response that cannot be completed."""
HAS_WRITE_DEADLINE = "reader_is_timed"
"""A key in a request's state, set if the connection itself is closed when a client stops reading
the response; other servers do not set it."""

_HEADERS_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)


class CoalescedWrites:
    """A transport that combines the writes of one event-loop iteration into one.

    uvicorn writes a response's head and body separately. Each write is a system call, the most
    expensive step of a short response.
    """

    __slots__ = ("_loop", "_pieces", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Queue data, which is sent at the end of the event loop's iteration."""
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def close(self) -> None:
        """Send queued data, then close the transport."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # any attribute of transports
        """Return an attribute of the wrapped transport."""
        return getattr(self._transport, name)

    def _send(self) -> None:
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            if not self._transport.is_closing():  # a WebSocket's transport refuses writes then
                self._transport.write(data)


class DeadlineHttpProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with deadlines for clients that send or read too slowly."""

    _deadline: asyncio.TimerHandle | None = None
    """For what the client must send next: headers, or the rest of a body that is discarded."""
    _reader_deadline: asyncio.TimerHandle | None = None
    """For a client that does not read the response."""
    _is_reading_headers = False
    """True from the first byte of a request until its headers are complete."""
    _header_bytes = 0
    _data = b""
    """What is being parsed."""
    _is_resuming = False
    """True while a new parser is told how the body of an ignored upgrade is framed."""
    _is_upgraded = False
    """True once the connection is a WebSocket, which has a protocol of its own."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(cast("asyncio.Transport", CoalescedWrites(transport, self.loop)))
        connection_cache: dict[str, bool] = {}
        self.app_state = {**self.app_state, CONNECTION_CACHE: connection_cache}
        self._set_deadline(_HEADERS_SECONDS)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._clear_reader_deadline()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        self._data = data
        super().data_received(data)
        if self._is_upgraded or self.transport.is_closing():
            return
        if self._is_reading_headers:
            self._header_bytes += len(data)
            if self._header_bytes > _HEADERS_BYTES:
                self.transport.write(_HEADERS_TOO_LARGE)
                self.transport.close()
                return
        cycle = self._cycle
        is_idle = cycle is None or cycle.response_complete
        # Bare line breaks begin no request but end uvicorn's idle timeout, so they count as well.
        if (self._is_reading_headers or is_idle) and not self._deadline:
            self._set_deadline(_HEADERS_SECONDS)

    @override
    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        self._is_reading_headers = True
        self._header_bytes = 0
        super().on_message_begin()

    @override
    def on_url(self, url: bytes) -> None:
        if not self._is_resuming:
            super().on_url(url)

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come after the body: as headers they could pass a proxy that removes headers.
        if self._is_reading_headers:
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        if self._is_resuming:
            return
        self._is_reading_headers = False
        self._clear_deadline()
        state = self.scope.setdefault("state", {})
        state[HAS_WRITE_DEADLINE] = True
        state[ABORT_CONNECTION] = self.transport.close
        super().on_headers_complete()

    @override
    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser stops here, before the body: see `_unsupported_upgrade_warning`
        self.scope.setdefault("state", {})[BODY_IS_COMPLETE] = True
        super().on_message_complete()
        if self.cycle.response_complete:
            self._clear_deadline()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._set_reader_deadline()
        elif self.cycle.response_complete and self.cycle.more_body:
            self._set_deadline(_UNREAD_BODY_SECONDS)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._set_reader_deadline()

    @override
    def resume_writing(self) -> None:
        self._clear_reader_deadline()
        super().resume_writing()

    @override
    def timeout_keep_alive_handler(self) -> None:
        self._abort()

    @override
    def shutdown(self) -> None:
        super().shutdown()
        cycle = self._cycle
        if cycle and cycle.more_body and not cycle.response_started:
            self._set_deadline(_SHUTDOWN_BODY_SECONDS)

    @override
    def handle_websocket_upgrade(self) -> None:
        if not self._is_readable_upgrade():
            self.transport.write(_HEADERS_TOO_LARGE)
            self.transport.close()
            return
        self._is_upgraded = True
        self._clear_deadline()
        self.app_state = {**self.app_state, ABORT_CONNECTION: self.transport.abort}
        super().handle_websocket_upgrade()

    def _is_readable_upgrade(self) -> bool:
        """Tell whether `websockets` reads the request, which else waits for ever, unanswered."""
        longest = max(len(name) + len(value) for name, value in self.headers) + len(": ")
        return (
            len(self.headers) <= MAX_NUM_HEADERS
            and max(longest, len(self.url) + len("GET  HTTP/1.1")) <= MAX_LINE_LENGTH - _SLACK
        )

    @override
    def _unsupported_upgrade_warning(self) -> None:
        """Serve the request as HTTP/1.1, which RFC 9110 (section 7.8) allows.

        Java's HttpClient offers HTTP/2 with every request. The parser has stopped after the
        headers, so a new one is given what frames the body, and then the rest.
        """
        stop = sys.exc_info()[1]
        rest = self._data[stop.args[0] :] if stop else b""
        framing = [
            b"%s: %s\r\n" % (name, value)
            for name, value in self.headers
            if name in {b"content-length", b"transfer-encoding"}
        ]
        self.parser = HttpRequestParser(self)
        self._is_resuming = True
        try:
            self.parser.feed_data(b"".join((b"POST / HTTP/1.1\r\n", *framing, b"\r\n")))
        finally:
            self._is_resuming = False
        if rest:
            self.data_received(rest)

    @property
    def _cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # `None` before the first request, in spite of its declared type

    def _set_deadline(self, seconds: float) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, self._abort)

    def _clear_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _set_reader_deadline(self) -> None:
        if not self._reader_deadline:
            self._reader_deadline = self.loop.call_later(_READER_SECONDS, self._abort)

    def _clear_reader_deadline(self) -> None:
        if self._reader_deadline:
            self._reader_deadline.cancel()
            self._reader_deadline = None

    def _abort(self) -> None:
        # `close` would wait until the client has read all data.
        if self.transport:
            self.transport.abort()
