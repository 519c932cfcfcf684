"""What tests of turns share: a provider that waits, a dead server, and what must not be left."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager, suppress
from uuid import UUID

import anyio
from sqlalchemy import or_, select, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import Caller
from app.models import Turn, TurnStatus, utc_now
from app.services.turns import Reply, TurnEngine
from app.services.turns.execution.live_turn import LiveTurn
from app.state import Providers, State, build_state
from tests.support.waiting import until

LIVE = {TurnStatus.QUEUED, TurnStatus.IN_PROGRESS}


class Gate:
    """Holds a provider until it is opened; tells how many wait."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.arrived = anyio.Event()
        self.waiting = 0

    async def __call__(self) -> None:
        self.waiting += 1
        self.arrived.set()
        await self.opened.wait()


async def abandon(database: Database, turn_id: UUID) -> None:
    """Leave the turn as a killed server does: live, owned by somebody, its lease run out."""
    async with database.transaction() as db:
        await db.execute(
            update(Turn)
            .where(Turn.id == turn_id)
            .values(owner_id=UUID(int=1), lease_expires_at=utc_now().replace(year=2020))
        )


async def unsettled(database: Database) -> int:
    """Return how many turns are queued or in progress."""
    async with database.reading() as db:
        return len((await db.scalars(select(Turn.id).where(Turn.status.in_(LIVE)))).all())


async def wait_until_settled(database: Database) -> None:
    """Return once no turn of the database is queued or in progress."""

    async def all_turns_are_settled() -> bool:
        return not await unsettled(database)

    await until(all_turns_are_settled)


async def wait_until_stored(live: LiveTurn) -> None:
    """Return once every event that the turn has so far is in the database."""

    def all_events_are_stored() -> bool:
        return not live.log.unstored_events()

    await until(all_events_are_stored)


async def assert_nothing_is_left(database: Database, *engines: TurnEngine) -> None:
    """Soon no turn is live or leased in the database, and no engine knows of one any more.

    Engines are asked while they run: at its shutdown each drops whatever it still has.
    """
    left: list[str] = []

    async def nothing_is_left() -> bool:
        left[:] = [*await _stored(database), *_registered(engines)]
        return not left

    with suppress(TimeoutError):
        await until(nothing_is_left)
    assert not left


async def assert_nothing_stays_registered(engine: TurnEngine) -> None:
    """Soon the engine knows of no turn any more, and looks for none elsewhere."""
    with suppress(TimeoutError):
        await until(lambda: not _registered([engine]))
    assert not _registered([engine])


async def _stored(database: Database) -> list[str]:
    is_held = or_(
        Turn.status.in_(LIVE), Turn.owner_id.is_not(None), Turn.lease_expires_at.is_not(None)
    )
    async with database.reading() as db:
        rows = await db.execute(select(Turn.id, Turn.status, Turn.owner_id).where(is_held))
        return [f"turn {turn_id} is {status}, owned by {owner}" for turn_id, status, owner in rows]


def _registered(engines: Iterable[TurnEngine]) -> list[str]:
    found: list[str] = []
    for engine in engines:
        running = engine._turns.values()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        watched = engine._remote_turns._watched  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        found += [f"{live.record.id} is registered as {live.record.status}" for live in running]
        found += [f"{turn_id} is watched" for _, turn_id in watched]
    return found


@asynccontextmanager
async def open_server(
    settings: Settings, database: Database, providers: Providers
) -> AsyncGenerator[State]:
    """Build a server's state; on SQLite it has looked for turns of stopped servers.

    The only server of a SQLite file takes over all turns that are not its own. A test that has two
    servers on one file begins once both have done so.
    """
    async with build_state(settings, database, providers) as state:
        if database.is_sqlite:
            maintenance = state["turns"]._maintenance  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            with anyio.fail_after(20):
                await maintenance.first_round.wait()
        yield state


async def reply_to_text(
    engine: TurnEngine, caller: Caller, session_id: UUID, content: str
) -> Reply:
    """Answer a message and return the answer. Raises the error that the turn ended with."""
    return await engine.result(await engine.start(caller, session_id, content))
