"""What must hold after every test with several servers: nothing is live, registered or leased."""

from collections.abc import Iterable

import anyio
from sqlalchemy import or_, select, text

from app.core.database import Database
from app.models import LIVE, Turn
from app.services.turns import TurnEngine

WITHIN_SECONDS = 60


async def assert_nothing_is_left(database: Database, engines: Iterable[TurnEngine]) -> None:
    """Soon no turn is live or leased in the database, and none is registered in any process."""
    left: list[str] = []
    with anyio.move_on_after(WITHIN_SECONDS):
        while left := [*await _stored(database), *_registered(engines)]:
            await anyio.sleep(0.05)
    assert not left


async def _stored(database: Database) -> list[str]:
    is_held = or_(Turn.owner_id.is_not(None), Turn.lease_expires_at.is_not(None), text(LIVE))
    async with database.reading() as db:
        rows = await db.execute(select(Turn.id, Turn.status, Turn.owner_id).where(is_held))
        return [f"turn {turn_id} is {status}, owned by {owner}" for turn_id, status, owner in rows]


def _registered(engines: Iterable[TurnEngine]) -> list[str]:
    return [
        f"turn {live.record.id} is registered as {live.record.status}"
        for engine in engines
        for live in engine._turns.values()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    ]
