"""What happens to a turn whose client disconnects before its response is complete."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from starlette.types import Receive

from app.core.security import Caller
from app.schemas.chat import DisconnectPolicy
from app.services.turns import LiveTurn, TurnEngine

T = TypeVar("T")

DisconnectCallback = Callable[[], Awaitable[None]]


def cancel_on_disconnect(
    turns: TurnEngine, caller: Caller, live: LiveTurn, policy: DisconnectPolicy
) -> DisconnectCallback | None:
    """Return what to call when the client disconnects; `None` where the turn continues."""
    if policy is DisconnectPolicy.CONTINUE:
        return None

    async def cancel() -> None:
        await turns.cancel(caller, live.record.id)

    return cancel


async def unless_disconnected(
    receive: Receive, on_disconnect: DisconnectCallback, work: Callable[[], Awaitable[T]]
) -> T:
    """Await `work`; call `on_disconnect` if the client disconnects before it is done.

    Raises what `work` raises.
    """
    results: list[T] = []
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_wait_for_disconnect, receive, on_disconnect)
        try:
            results.append(await work())
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failure = error
        group.cancel_scope.cancel()
    if failure:
        raise failure
    return results[0]


async def _wait_for_disconnect(receive: Receive, on_disconnect: DisconnectCallback) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    await on_disconnect()
