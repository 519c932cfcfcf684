"""Store events of turns in batches; load them for clients that resume; prune them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Dialect,
    Insert,
    Update,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Statement
from app.core.database.transactions import TransactionScript
from app.models import LIVE, TurnEventBatch, utc_now
from app.services.turns.events import EventType, TurnEvent
from app.services.turns.records import TurnRecord
from app.services.turns.retention import EVENT_RETENTION
from app.services.turns.storage import turn_statements
from app.services.turns.storage.tables import (
    is_attempt,
    same_named_parameters,
    turn_events,
    turns,
)

_KNOWN_NAMES = frozenset(event_type.value.encode() for event_type in EventType)


def pack(events: Iterable[TurnEvent]) -> bytes:
    """Encode events for storage, one per line."""
    return b"\n".join([b"%d %s %s" % (event.number, event.name, event.json) for event in events])


def unpack(lines: bytes) -> Sequence[TurnEvent]:
    """Decode the events that `pack` encoded.

    Types that a newer server added are left out: during a rolling update both read one table.
    """
    fields = [line.split(b" ", 2) for line in lines.split(b"\n") if line]
    return [
        TurnEvent(int(number), EventType(name.decode()), None, json)
        for number, name, json in fields
        if name in _KNOWN_NAMES
    ]


def insert_events_stmts(
    record: TurnRecord, events: Sequence[TurnEvent], now: datetime
) -> Sequence[Statement]:
    """Return the statement that inserts a batch of events; the caller holds the turn's row lock."""
    if not events:
        return ()
    batch = turn_statements.INSERT_EVENTS(
        workspace_id=record.workspace_id,
        turn_id=record.id,
        last_number=events[-1].number,
        events=pack(events),
        created_at=now,
    )
    return (batch,)


def insert_events_if_current_stmt(
    record: TurnRecord, events: Sequence[TurnEvent], now: datetime
) -> Statement:
    """Return the statement that inserts a batch of events if the turn's attempt is current.

    Locks the turn's row; returns no row, and inserts none, if the turn was deleted or taken over.
    """
    return _INSERT_IF_CURRENT(
        workspace_id_=record.workspace_id,
        turn_id_=record.id,
        attempt_=record.attempt,
        last_number=events[-1].number,
        events=pack(events),
        created_at=now,
    )


def last_number_stmt(record: TurnRecord) -> Statement:
    """Return the statement that selects the number of the turn's last stored event."""
    return _LAST_NUMBER(workspace_id_=record.workspace_id, turn_id_=record.id)


async def read(
    db: AsyncSession, workspace_id: UUID, turn_id: UUID, after: int
) -> Sequence[TurnEvent]:
    """Load the stored events with a number above `after`."""
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


async def last_number(db: AsyncSession, workspace_id: UUID, turn_id: UUID) -> int | None:
    """Return the number of the turn's last stored event; `None` where none is stored."""
    return await db.scalar(
        select(func.max(TurnEventBatch.last_number)).where(
            TurnEventBatch.workspace_id == workspace_id,
            TurnEventBatch.turn_id == turn_id,
            TurnEventBatch.events != b"",
        )
    )


def discard_events_stmts(record: TurnRecord) -> Sequence[Statement]:
    """Return the statements that delete the events of a failed attempt before a restart.

    Their last number is kept, so that the next attempt continues above it.
    """
    turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
    return _DELETE_EVENTS(**turn, last_=record.numbers_after), _EMPTY_LAST_BATCH(**turn, events=b"")


def prune() -> TransactionScript[None]:
    """Delete the events that are older than `EVENT_RETENTION`."""
    yield [_PRUNE_EVENTS(before_=utc_now() - EVENT_RETENTION)]


def _is_of_turn() -> ColumnElement[bool]:
    return and_(
        turn_events.c.workspace_id == bindparam("workspace_id_"),
        turn_events.c.turn_id == bindparam("turn_id_"),
    )


def _insert_if_current_stmt(_dialect: Dialect) -> Insert:
    held = (
        select(turns.c.workspace_id, turns.c.id)
        .where(is_attempt(), text(LIVE))
        .with_for_update()
        .subquery("held")
    )
    number, events, created_at = (
        bindparam(name, type_=turn_events.c[name].type)
        for name in ("last_number", "events", "created_at")
    )
    values = (number, cast(events, turn_events.c.events.type), created_at)
    return (
        insert(turn_events)
        .from_select(
            ["workspace_id", "turn_id", "last_number", "events", "created_at"],
            select(held.c.workspace_id, held.c.id, *values),
        )
        .returning(turn_events.c.last_number)
    )


def _last_number_stmt(_dialect: Dialect) -> ClauseElement:
    return select(func.max(turn_events.c.last_number)).where(_is_of_turn())


def _delete_events_stmt(_dialect: Dialect) -> Delete:
    return delete(turn_events).where(_is_of_turn(), turn_events.c.last_number < bindparam("last_"))


def _empty_last_batch_stmt(_dialect: Dialect) -> Update:
    return update(turn_events).where(_is_of_turn()).values(**same_named_parameters("events"))


def _prune_events_stmt(_dialect: Dialect) -> Delete:
    return delete(turn_events).where(turn_events.c.created_at < bindparam("before_"))


_INSERT_IF_CURRENT = PreparedStatement(_insert_if_current_stmt)
_LAST_NUMBER = PreparedStatement(_last_number_stmt)
_DELETE_EVENTS = PreparedStatement(_delete_events_stmt)
_EMPTY_LAST_BATCH = PreparedStatement(_empty_last_batch_stmt)
_PRUNE_EVENTS = PreparedStatement(_prune_events_stmt)
