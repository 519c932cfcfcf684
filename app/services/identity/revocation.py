"""Close open streams when their credential is revoked: one check for each caller."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio

from app.core.database import StorageUnavailable
from app.core.errors import AppError
from app.core.security import Caller

RECHECK_SECONDS = 2.0
"""The interval at which the credentials of open streams are checked."""
_CONCURRENT_CHECKS = 100

CutStream = Callable[[AppError], None]
"""Ends a stream; its argument is the error to report."""


class OpenStreamRegistry:
    """Ends the open streams of callers whose credential is no longer valid."""

    def __init__(self, require_valid: Callable[[Caller], Awaitable[None]]) -> None:
        """`require_valid` raises an `AppError` where a caller's credential is no longer valid."""
        self._require_valid = require_valid
        self._cuts: dict[Caller, set[CutStream]] = {}
        self._has_streams = anyio.Event()

    @property
    def stream_count(self) -> int:
        """How many streams are open."""
        return sum(len(cuts) for cuts in self._cuts.values())

    @property
    def caller_count(self) -> int:
        """How many callers have streams open."""
        return len(self._cuts)

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Check the callers of open streams every 2 s while the block runs."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            yield
            group.cancel_scope.cancel()

    @contextmanager
    def cut_when_refused(self, caller: Caller, cut: CutStream) -> Generator[None]:
        """Call `cut` if the caller's credential becomes invalid while the block runs."""
        cuts = self._cuts.setdefault(caller, set())
        cuts.add(cut)
        self._has_streams.set()
        try:
            yield
        finally:
            cuts.discard(cut)
            if not cuts and self._cuts.get(caller) is cuts:
                del self._cuts[caller]

    async def _watch(self) -> None:
        while True:
            if not self._cuts:
                self._has_streams = anyio.Event()
                await self._has_streams.wait()
            await anyio.sleep(RECHECK_SECONDS)
            callers = list(self._cuts)
            for start in range(0, len(callers), _CONCURRENT_CHECKS):
                async with anyio.create_task_group() as group:
                    for caller in callers[start : start + _CONCURRENT_CHECKS]:
                        group.start_soon(self._recheck, caller)

    async def _recheck(self, caller: Caller) -> None:
        try:
            with suppress(StorageUnavailable):  # an unreachable database revokes nothing
                await self._require_valid(caller)
        except AppError as refusal:
            for cut in self._cuts.pop(caller, ()):
                cut(refusal)
