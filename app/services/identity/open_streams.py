"""Streams that are open: one question for all that a caller has, however many they are."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio

from app.core.database import StorageUnavailable
from app.core.errors import AppError
from app.core.security import Caller

RECHECK_SECONDS = 2.0
"""How often it is looked up whether an open stream's key is still good."""
_ASKED_AT_ONCE = 100

Cut = Callable[[AppError], None]
"""Ends a stream, and is told why."""


class OpenStreams:
    """Cuts the streams of callers who may not be here any more."""

    def __init__(self, require_still: Callable[[Caller], Awaitable[None]]) -> None:
        """`require_still` raises where a caller may not be here any more."""
        self._require_still = require_still
        self._cuts: dict[Caller, set[Cut]] = {}
        self._wanted = anyio.Event()

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Look at the callers of open streams every two seconds while the block runs."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            yield
            group.cancel_scope.cancel()

    @contextmanager
    def cut_when_refused(self, caller: Caller, cut: Cut) -> Generator[None]:
        """Call `cut` when the caller is refused while the block runs."""
        cuts = self._cuts.setdefault(caller, set())
        cuts.add(cut)
        self._wanted.set()
        try:
            yield
        finally:
            cuts.discard(cut)
            if not cuts and self._cuts.get(caller) is cuts:
                del self._cuts[caller]

    async def _watch(self) -> None:
        while True:
            if not self._cuts:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            await anyio.sleep(RECHECK_SECONDS)
            callers = list(self._cuts)
            for start in range(0, len(callers), _ASKED_AT_ONCE):
                async with anyio.create_task_group() as group:
                    for caller in callers[start : start + _ASKED_AT_ONCE]:
                        group.start_soon(self._look_at, caller)

    async def _look_at(self, caller: Caller) -> None:
        try:
            with suppress(StorageUnavailable):  # a database that is away says nothing
                await self._require_still(caller)
        except AppError as refusal:
            for cut in self._cuts.pop(caller, ()):
                cut(refusal)
