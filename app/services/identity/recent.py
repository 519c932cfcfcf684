"""Answers that are believed for half a second, so that requests do not ask one by one."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

K = TypeVar("K")
V = TypeVar("V")

_LIFE_SECONDS = 0.5
_REMEMBERED = 10_000


class Recent(Generic[K, V]):
    """Remembers what `load` returned; those who ask at once wait for the same answer."""

    def __init__(self) -> None:
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()
        """With the moment at which it was asked for."""
        self._loading: dict[K, anyio.Event] = {}

    async def get(self, key: K, load: Callable[[], Awaitable[V]]) -> V:
        """Return an answer that is at most half a second older than this call.

        Raises what `load` raises, which is not remembered.
        """
        oldest = time.monotonic() - _LIFE_SECONDS
        while True:
            known = self._values.get(key)
            if known and known[1] > oldest:
                return known[0]
            if key in self._loading:
                await self._loading[key].wait()
                continue
            loaded = self._loading[key] = anyio.Event()
            asked_at = time.monotonic()
            try:
                value = await load()
                self._values[key] = value, asked_at
                self._values.move_to_end(key)
                if len(self._values) > _REMEMBERED:
                    self._values.popitem(last=False)
                return value
            finally:
                del self._loading[key]
                loaded.set()
