"""Opens the client at the first request, since aiohttp takes 8 MB and a fifth of a second."""

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from anyio import to_thread

from app.services.outbound.addresses import Guard
from app.services.outbound_port import OutboundRequest, OutboundResponse

if TYPE_CHECKING:
    from app.services.outbound.client import GuardedClient


class OutboundOnDemand:
    """Fulfils the port `Outbound`; an async context manager, to be used inside only."""

    def __init__(self, guard: Guard, proxy: str | None) -> None:
        self._guard = guard
        self._proxy = proxy
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._client: GuardedClient | None = None

    async def __aenter__(self) -> Self:
        """Open nothing yet."""
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every connection."""
        await self._stack.aclose()

    def refusal_of(self, url: str) -> str | None:
        """See `Outbound.refusal_of`."""
        return self._guard.refusal_of_url(url)

    async def send(self, request: OutboundRequest) -> OutboundResponse:
        """See `Outbound.send`."""
        return await (self._client or await self._open()).send(request)

    async def _open(self) -> "GuardedClient":
        async with self._lock:
            if self._client is None:
                await to_thread.run_sync(_load)
                from app.services.outbound.client import open_outbound

                opening = open_outbound(self._guard, proxy=self._proxy)
                self._client = await self._stack.enter_async_context(opening)
        return self._client


def _load() -> None:
    """Import aiohttp beside the event loop."""
    import app.services.outbound.client as _  # noqa: F401
