"""A turn's events in the database: stored in batches, read by whoever comes back, pruned."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.core.direct import Direct, run_all
from app.models import IdempotencyKey, TurnEventBatch, utc_now
from app.services.turns import hot
from app.services.turns.events import TurnEvent, pack, unpack
from app.services.turns.records import TurnRecord
from app.services.turns.statements import turn_events

KEPT = timedelta(hours=24)
"""How long events and idempotency keys are kept."""


async def append(
    connection: AsyncConnection, record: TurnRecord, events: Sequence[TurnEvent], now: datetime
) -> None:
    """Store the turn's next events; the caller holds the turn."""
    await run_all(connection, appending(record, events, now))


def appending(
    record: TurnRecord, events: Sequence[TurnEvent], now: datetime
) -> list[tuple[Direct, Mapping[str, Any]]]:
    """Return what stores the turn's next events, if there are any."""
    if not events:
        return []
    batch = {
        "workspace_id": record.workspace_id,
        "turn_id": record.id,
        "last_number": events[-1].number,
        "events": pack(events),
        "created_at": now,
    }
    return [(hot.INSERT_EVENTS, batch)]


async def read(
    db: AsyncSession, workspace_id: UUID, turn_id: UUID, after: int
) -> Sequence[TurnEvent]:
    """Return the stored events with a number above `after`."""
    batches = await db.scalars(
        select(TurnEventBatch.events)
        .where(
            TurnEventBatch.workspace_id == workspace_id,
            TurnEventBatch.turn_id == turn_id,
            TurnEventBatch.last_number > after,
        )
        .order_by(TurnEventBatch.last_number)
    )
    return [event for batch in batches for event in unpack(batch) if event.number > after]


async def forget(connection: AsyncConnection, record: TurnRecord) -> None:
    """Drop the events of an attempt that failed, before the next one."""
    await connection.execute(
        delete(turn_events).where(
            turn_events.c.workspace_id == record.workspace_id, turn_events.c.turn_id == record.id
        )
    )


async def prune(connection: AsyncConnection) -> None:
    """Drop what is older than `KEPT`: events, and idempotency keys."""
    before = utc_now() - KEPT
    await connection.execute(delete(turn_events).where(turn_events.c.created_at < before))
    await connection.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < before))
