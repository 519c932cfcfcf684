"""One at a time of each caller, in the order in which they came."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _CallerQueue:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class CallerLocks:
    """A lock for each caller, which exists while somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._queues: dict[object, _CallerQueue] = {}

    @asynccontextmanager
    async def hold(self, caller: object) -> AsyncGenerator[None]:
        """Hold the lock of `caller` during the block."""
        queue = self._queues.setdefault(caller, _CallerQueue())
        queue.users += 1
        try:
            async with queue.lock:
                yield
        finally:
            queue.users -= 1
            if not queue.users:
                self._queues.pop(caller, None)
