"""A cache with a lifetime of 0.5 s, which also joins concurrent loads of one key."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

K = TypeVar("K")
V = TypeVar("V")

_TTL_SECONDS = 0.5
_MAX_ENTRIES = 10_000


class TtlCache(Generic[K, V]):
    """Caches loaded values by key; concurrent calls for one key share one load."""

    def __init__(self) -> None:
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()
        """Each value with the time at which its load began."""
        self._loading: dict[K, anyio.Event] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Return a value whose load began at most 0.5 s before this call.

        Raises what `load` raises; errors are not cached.
        """
        oldest = time.monotonic() - _TTL_SECONDS
        while True:
            entry = self._values.get(key)
            if entry and entry[1] > oldest:
                return entry[0]
            if key in self._loading:
                await self._loading[key].wait()
                continue
            loaded = self._loading[key] = anyio.Event()
            load_started_at = time.monotonic()
            try:
                value = await load()
                self._values[key] = value, load_started_at
                self._values.move_to_end(key)
                if len(self._values) > _MAX_ENTRIES:
                    self._values.popitem(last=False)
                return value
            finally:
                del self._loading[key]
                loaded.set()
