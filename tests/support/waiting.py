"""Waiting for what nobody announces, such as a row that another server writes."""

import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable

import anyio

_PAUSE_SECONDS = 0.01


async def until(
    condition: Callable[[], Awaitable[object] | object], *, within_seconds: float = 60
) -> None:
    """Return once the condition holds. Raises `TimeoutError`, with its name, where it never does.

    The limit only ends a test that fails; it is no claim about speed.
    """
    with anyio.move_on_after(within_seconds):
        while True:
            holds: object = condition()
            if isawaitable(holds):
                holds = await holds
            if holds:
                return
            await anyio.sleep(_PAUSE_SECONDS)
    name = getattr(condition, "__qualname__", repr(condition))
    raise TimeoutError(f"{name} did not hold within {within_seconds} s")


def until_sync(condition: Callable[[], object], *, within_seconds: float = 60) -> None:
    """Do the same in a test that has no event loop."""
    give_up_at = time.monotonic() + within_seconds
    while not condition():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"it did not hold within {within_seconds} s")
        time.sleep(5 * _PAUSE_SECONDS)
