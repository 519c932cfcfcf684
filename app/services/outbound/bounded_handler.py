"""aiohttp's side of a connection, made patient: no answer holds the event loop for long.

aiohttp parses whatever a socket had, up to 256 KB, in one go. A quarter of a megabyte of chunks of
one byte, or of heads of informational responses, takes a tenth of a second, and the latter never
end an exchange.
"""

import asyncio
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from typing_extensions import override

SLICE_BYTES = 4096
"""What is parsed before others have their turn."""
MAX_INFORMATIONAL = 16
"""Responses of the status 1xx before the one that counts."""
_SWITCHING_PROTOCOLS = 101


class BoundedHandler(ResponseHandler):
    """Parses a slice at a time, and bounds what may come before an answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._waiting = bytearray()
        """What has come and is not parsed yet; nothing more is read meanwhile."""
        self._informational = 0

    @property
    @override
    def should_close(self) -> bool:
        """True also where something came behind the end of an answer."""
        return bool(self._waiting) or super().should_close

    @override
    def data_received(self, data: bytes) -> None:
        """Parse the beginning of `data`, and the rest soon."""
        if self._waiting:
            self._waiting += data
        elif len(data) > SLICE_BYTES:
            self._waiting += data
            self._pause_reading_for_buffer()
            self._parse_slice()
        else:
            super().data_received(data)

    @override
    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget what was not parsed: as long as there is some, only this side ends it."""
        self._waiting.clear()
        super().connection_lost(exc)

    @override
    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of a response; those that say nothing are counted and dropped."""
        code = data[0].code
        if code // 100 != 1 or code == _SWITCHING_PROTOCOLS:
            self._informational = 0
            super().feed_data(data, size)
            return
        self._informational += 1
        if self._informational == MAX_INFORMATIONAL + 1:
            self.set_exception(HttpProcessingError(message="too many informational responses"))
            if self.transport:
                self.transport.abort()

    def _parse_slice(self) -> None:
        if self.transport is None or self.transport.is_closing():
            self._waiting.clear()
            return
        piece = bytes(self._waiting[:SLICE_BYTES])
        del self._waiting[:SLICE_BYTES]
        super().data_received(piece)
        if self._waiting:
            self._loop.call_soon(self._parse_slice)
        else:
            self._resume_reading_for_buffer()


def bound_answers(connector: aiohttp.TCPConnector) -> None:
    """Let the answers on the connections of `connector` be parsed by `BoundedHandler`."""
    factory: Any = partial(BoundedHandler, loop=asyncio.get_running_loop())
    connector._factory = factory  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
