"""Repeat work while the database cannot be reached."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from app.core.database.errors import StorageUnavailable

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0


async def retry_while_unavailable(work: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Return what `work` returns; repeat it for `seconds` on `StorageUnavailable`, then raise it.

    It is repeated after a `CommitOutcomeUnknown` too: its effect must be the same if done twice.
    """
    give_up_at = time.monotonic() + seconds
    pause_seconds = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return await work()
        except StorageUnavailable:
            if time.monotonic() + pause_seconds > give_up_at:
                raise
        await anyio.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
