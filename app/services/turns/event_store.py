"""A turn's events in the database: stored in batches, read by whoever comes back, pruned."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Dialect,
    Update,
    and_,
    bindparam,
    delete,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.direct import Direct, Program, Statement
from app.models import TurnEventBatch, utc_now
from app.services.turns import hot
from app.services.turns.events import TurnEvent, pack, unpack
from app.services.turns.records import TurnRecord
from app.services.turns.statements import idempotency_keys, named, turn_events

KEPT = timedelta(hours=24)
"""How long events and idempotency keys are kept."""


def appending(
    record: TurnRecord, events: Sequence[TurnEvent], now: datetime
) -> Sequence[Statement]:
    """Return what stores the turn's next events, if there are any; the caller holds the turn."""
    if not events:
        return ()
    batch = hot.INSERT_EVENTS(
        workspace_id=record.workspace_id,
        turn_id=record.id,
        last_number=events[-1].number,
        events=pack(events),
        created_at=now,
    )
    return (batch,)


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


def forgetting(record: TurnRecord) -> Sequence[Statement]:
    """Return what drops the events of an attempt that failed, before the next one.

    Their last number stays, for the next attempt to go on above it.
    """
    turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
    return _FORGET(**turn, last_=record.numbers_after), _EMPTY(**turn, events=b"")


def prune() -> Program[None]:
    """Drop what is older than `KEPT`: events, and idempotency keys."""
    before = utc_now() - KEPT
    yield [_PRUNE_EVENTS(before_=before), _PRUNE_KEYS(before_=before)]


def _is_of_turn() -> ColumnElement[bool]:
    return and_(
        turn_events.c.workspace_id == bindparam("workspace_id_"),
        turn_events.c.turn_id == bindparam("turn_id_"),
    )


def _forget(_dialect: Dialect) -> Delete:
    return delete(turn_events).where(_is_of_turn(), turn_events.c.last_number < bindparam("last_"))


def _empty(_dialect: Dialect) -> Update:
    return update(turn_events).where(_is_of_turn()).values(**named("events"))


def _prune_events(_dialect: Dialect) -> Delete:
    return delete(turn_events).where(turn_events.c.created_at < bindparam("before_"))


def _prune_keys(_dialect: Dialect) -> Delete:
    return delete(idempotency_keys).where(idempotency_keys.c.created_at < bindparam("before_"))


_FORGET = Direct(_forget)
_EMPTY = Direct(_empty)
_PRUNE_EVENTS = Direct(_prune_events)
_PRUNE_KEYS = Direct(_prune_keys)
