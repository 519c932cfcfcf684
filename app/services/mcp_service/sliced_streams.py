"""Connections of which little is read at once, so that a long answer holds up no other call."""

import ssl
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import anyio
import httpcore2
from typing_extensions import override

_SLICE_BYTES = 2048
"""What is parsed before other calls have their turn."""
_MOST_HEAD_BYTES = 128 << 10
"""Before a body begins: informational responses have no end of their own."""


@dataclass(slots=True)
class AwaitedHead:
    """Counts what comes before the body of an answer."""

    received_bytes: int = 0


awaited_head: ContextVar[AwaitedHead | None] = ContextVar("mcpawaited_head", default=None)


class _SlicedStream(httpcore2.AsyncNetworkStream):
    """A connection of which little is read at once."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner

    @override
    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read up to `_SLICE_BYTES`. Raises `ReadError` for a head without end."""
        data = await self._inner.read(min(max_bytes, _SLICE_BYTES), timeout)
        if head := awaited_head.get():
            head.received_bytes += len(data)
            if head.received_bytes > _MOST_HEAD_BYTES:
                raise httpcore2.ReadError("the head of the answer is longer than any can be")
        return data

    @override
    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See httpcore."""
        await self._inner.write(buffer, timeout)

    @override
    async def aclose(self) -> None:
        """See httpcore."""
        await self._inner.aclose()

    @override
    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """See httpcore."""
        return _SlicedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    @override
    def get_extra_info(self, info: str) -> Any:
        """See httpcore."""
        return self._inner.get_extra_info(info)


class SlicingBackend(httpcore2.AsyncNetworkBackend):
    """Connects anywhere."""

    def __init__(self) -> None:
        self._inner: Any = httpcore2.AnyIOBackend()

    @override
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """See httpcore."""
        connecting = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _SlicedStream(await connecting)

    @override
    async def sleep(self, seconds: float) -> None:
        """See httpcore."""
        await anyio.sleep(seconds)
