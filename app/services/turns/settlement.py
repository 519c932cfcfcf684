"""A turn's way through the database after its acceptance: what is heard, checkpoints, its end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Dialect, Update, bindparam, select, text, update
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct, Program, Statement, one
from app.models import LIVE, UNSETTLED, MessageStatus, Modality, TurnStatus, utc_now
from app.services.turns import event_store, hot, leases, receipts
from app.services.turns.events import TurnEvent
from app.services.turns.loading import TURN_COLUMNS, TurnRow, hold, load_record, lock_session
from app.services.turns.records import Outcome, Progress, TurnRecord
from app.services.turns.statements import (
    LEASE,
    in_session,
    is_message,
    is_turn,
    lease_end,
    lost,
    messages,
    turns,
)


def hear(record: TurnRecord, words: str) -> Program[None]:
    """Store what a voice turn's user said. Raises `TurnLost`."""
    held, _ = yield [
        hold(record),
        hot.SETTLE_MESSAGE(
            workspace_id_=record.workspace_id,
            message_id_=record.user_message_id,
            content=words,
            status=MessageStatus.COMPLETED,
        ),
    ]
    if not held:
        raise lost()  # and all of it is rolled back


def checkpoint(
    record: TurnRecord, events: Sequence[TurnEvent], sound: Sequence[Statement] = ()
) -> Program[None]:
    """Store what a running turn has come to; `sound` does it for what it has spoken.

    Raises `TurnLost`.
    """
    held, *_ = yield [hold(record), *event_store.appending(record, events, utc_now())]
    if not held:
        raise lost()
    if sound:
        yield sound


def give_up(record: TurnRecord, events: Sequence[TurnEvent]) -> Program[None]:
    """Store what a running turn has come to, for whoever takes it over. Raises `TurnLost`."""
    yield from checkpoint(record, events)
    yield from leases.release(record)


def settle(
    record: TurnRecord,
    outcome: Outcome,
    progress: Progress,
    events: Sequence[TurnEvent],
    owner_id: UUID,
) -> Program[TurnRecord | None]:
    """Store how the turn ended, with its last events.

    Returns the session's next turn, which is `owner_id`'s now. Raises `TurnLost` when the turn
    is not this attempt's any more; then nothing is stored.
    """
    now = utc_now()
    yield from lock_session(record, now)
    ended, *_ = yield [
        _end(record, outcome, progress, now),
        hot.SETTLE_MESSAGE(
            workspace_id_=record.workspace_id,
            message_id_=record.message_id,
            content=outcome.content,
            status=outcome.message_status,
        ),
        *event_store.appending(record, events, now),
        *receipts.settling(record, progress),
    ]
    if not ended:
        raise lost()  # and all of it is rolled back
    ((waiting,),) = ended
    if record.modality is Modality.VOICE:
        yield [_FAIL_UNHEARD(workspace_id_=record.workspace_id, message_id_=record.user_message_id)]
    return (yield from _promote_next(record, owner_id, now)) if waiting else None


def _end(record: TurnRecord, outcome: Outcome, progress: Progress, now: datetime) -> Statement:
    error = outcome.error
    return hot.SETTLE_TURN(
        workspace_id_=record.workspace_id,
        session_id_=record.session_id,
        turn_id_=record.id,
        attempt_=record.attempt,
        status=outcome.status,
        ended_at=now,
        error_code=error.code if error else None,
        error_detail=error.detail if error else None,
        finish_reason=progress.finish_reason,
        model=progress.model,
        timings=progress.timings,
        **receipts.columns(progress),
    )


def _promote_next(record: TurnRecord, owner_id: UUID, now: datetime) -> Program[TurnRecord | None]:
    session = {"workspace_id_": record.workspace_id, "session_id_": record.session_id}
    unsettled = yield from one(_UNSETTLED_TURNS(**session))
    # The session is locked: nobody else promotes meanwhile.
    next_id, is_queued = unsettled[0][0], unsettled[0][1] is TurnStatus.QUEUED
    if not is_queued:
        return None
    ((*columns,),) = yield from one(
        _PROMOTE(
            workspace_id_=record.workspace_id,
            turn_id_=next_id,
            owner_id=owner_id,
            started_at=now,
            lease_end_=now + LEASE,
        )
    )
    promoted = yield from load_record(TurnRow(*columns))
    return replace(promoted, was_queued=True)


def _fail_unheard(_dialect: Dialect) -> Update:
    return (
        update(messages)
        .where(is_message(), messages.c.status == MessageStatus.IN_PROGRESS)
        .values(status=MessageStatus.FAILED)
    )


def _unsettled_turns(_dialect: Dialect) -> ClauseElement:
    """Load the session's unsettled turns; a live one comes first, then the oldest that waits."""
    return (
        select(turns.c.id, turns.c.status)
        .where(in_session(), text(UNSETTLED))
        .order_by(text(f"CASE WHEN {LIVE} THEN 0 ELSE 1 END"), turns.c.user_seq)
    )


def _promote(dialect: Dialect) -> Update:
    return (
        update(turns)
        .where(is_turn())
        .values(
            status=TurnStatus.IN_PROGRESS,
            owner_id=bindparam("owner_id"),
            lease_expires_at=lease_end(dialect),
            started_at=bindparam("started_at"),
        )
        .returning(*TURN_COLUMNS)
    )


_FAIL_UNHEARD = Direct(_fail_unheard)
_UNSETTLED_TURNS = Direct(_unsettled_turns)
_PROMOTE = Direct(_promote)
