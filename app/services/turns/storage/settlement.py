"""Transaction scripts after acceptance: store the transcript, checkpoint, release, settle."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import Dialect, Update, bindparam, select, text, update
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Statement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.value_objects import value_object
from app.models import LIVE, UNSETTLED, MessageStatus, Modality, TurnStatus, utc_now
from app.services.turns import receipts
from app.services.turns.errors import turn_lost
from app.services.turns.events import TurnEvent
from app.services.turns.parts import encode_parts
from app.services.turns.records import Outcome, Progress, TurnRecord
from app.services.turns.storage import (
    event_store,
    leases,
    ledger,
    resolution,
    turn_statements,
)
from app.services.turns.storage.tables import (
    LEASE,
    in_session,
    is_attempt,
    is_message,
    is_turn,
    lease_end,
    messages,
    same_named_parameters,
    turns,
)
from app.services.turns.storage.turn_rows import (
    TURN_COLUMNS,
    TurnRow,
    hold_turn_stmt,
    load_record,
    lock_session,
)

_SETTLED = frozenset((TurnStatus.COMPLETED, TurnStatus.FAILED, TurnStatus.CANCELLED))


@value_object(frozen=True, slots=True)
class EarlierSettlement:
    """What an earlier call of `settle` stored."""

    last_number: int
    """The number of the turn's last stored event."""
    is_settled: bool = False
    following: TurnRecord | None = None
    """The turn that it promoted, if that is still this server's."""


def store_transcript(record: TurnRecord, words: str) -> TransactionScript[None]:
    """Store the transcript as the user message of a voice turn. Raises `TurnLost`."""
    held, _ = yield [
        hold_turn_stmt(record),
        turn_statements.SETTLE_MESSAGE(
            workspace_id_=record.workspace_id,
            message_id_=record.user_message_id,
            content=words,
            status=MessageStatus.COMPLETED,
        ),
    ]
    if not held:
        raise turn_lost()  # rolls the transaction back


def checkpoint(
    record: TurnRecord,
    events: Sequence[TurnEvent],
    sound: Sequence[Statement] = (),
    *,
    may_be_stored: bool = False,
) -> TransactionScript[None]:
    """Store a running turn's events; `sound` are the statements that store its audio.

    `may_be_stored`: an earlier COMMIT had no answer, so some of the events may be stored already.
    Raises `TurnLost`.
    """
    if may_be_stored or not events:
        held = yield from fetch_one(hold_turn_stmt(record))  # waits for the lost transaction
        if not held:
            raise turn_lost()
    if may_be_stored:
        ((last_number,),) = yield from fetch_one(event_store.last_number_stmt(record))
        events = [event for event in events if event.number > (last_number or 0)]
    if events:
        inserted = yield from fetch_one(
            event_store.insert_events_if_current_stmt(record, events, utc_now())
        )
        if not inserted:
            raise turn_lost()
    if sound:
        yield sound


def release_turn(
    record: TurnRecord, events: Sequence[TurnEvent], *, may_be_stored: bool = False
) -> TransactionScript[None]:
    """Store a running turn's events and release its lease. Raises `TurnLost`."""
    yield from checkpoint(record, events, may_be_stored=may_be_stored)
    yield from leases.release(record)


def find_earlier_settlement(
    record: TurnRecord, ended_at: datetime, owner_id: UUID
) -> TransactionScript[EarlierSettlement]:
    """Find out what became of an earlier call of `settle` whose COMMIT had no answer.

    Raises `TurnLost` if another server settled the turn, or it was deleted.
    """
    yield from lock_session(record, utc_now())  # waits for the lost transaction, as the next does
    yield [hold_turn_stmt(record)]
    turn = {"workspace_id_": record.workspace_id, "turn_id_": record.id}
    rows, ((last_number,),) = yield [
        _ENDED_AT(**turn, attempt_=record.attempt),
        event_store.last_number_stmt(record),
    ]
    if not rows or rows[0][0] not in {None, ended_at}:
        raise turn_lost()
    if rows[0][0] is None:
        return EarlierSettlement(last_number or 0)
    promoted = yield from fetch_one(
        _PROMOTED(
            workspace_id_=record.workspace_id, session_id_=record.session_id, owner_id_=owner_id
        )
    )
    if not promoted:
        return EarlierSettlement(last_number, is_settled=True)
    following = yield from load_record(TurnRow(*promoted[0]))
    return EarlierSettlement(
        last_number, is_settled=True, following=replace(following, was_queued=True)
    )


def settle(  # noqa: PLR0913, PLR0917  # one per stored value
    record: TurnRecord,
    outcome: Outcome,
    progress: Progress,
    events: Sequence[TurnEvent],
    owner_id: UUID,
    ended_at: datetime,
) -> TransactionScript[TurnRecord | None]:
    """Settle a turn: store its outcome, last events and usage; promote the next queued turn.

    `ended_at` identifies the call for `find_earlier_settlement`. Returns the promoted turn, whose
    lease `owner_id` holds, if any. Raises `TurnLost` if the turn was deleted or has a newer
    attempt; then nothing is stored.
    """
    now = utc_now()
    yield from lock_session(record, now)
    if record.status is TurnStatus.QUEUED:  # cancelled, unless it was promoted meanwhile
        row = yield from leases.find_row(record.workspace_id, record.id)
        if row and row.status is TurnStatus.IN_PROGRESS:
            raise turn_lost()
    ended, *_ = yield [
        store_outcome_stmt(record, outcome, progress, ended_at),
        turn_statements.SETTLE_ANSWER(
            workspace_id_=record.workspace_id,
            message_id_=record.message_id,
            content=outcome.content,
            status=outcome.message_status,
            created_at=ended_at,
        ),
        *_parts_stmts(record, outcome),
        *(ledger.close_calls_stmts(record) if progress.steps else ()),
        *event_store.insert_events_stmts(record, events, now),
        *receipts.settle_reservation_stmts(record, progress),
    ]
    if not ended:
        raise turn_lost()  # rolls the transaction back
    ((waiting,),) = ended
    if record.modality is Modality.VOICE:
        yield [_FAIL_UNHEARD(workspace_id_=record.workspace_id, message_id_=record.user_message_id)]
    return (yield from _promote_next(record, owner_id, now)) if waiting else None


def _parts_stmts(record: TurnRecord, outcome: Outcome) -> Sequence[Statement]:
    if outcome.parts is None and outcome.output is None:
        return ()
    stored = turn_statements.SETTLE_PARTS(
        workspace_id_=record.workspace_id,
        message_id_=record.message_id,
        parts=None if outcome.parts is None else encode_parts(outcome.parts),
        output=outcome.output,
    )
    return (stored,)


def suspend(
    record: TurnRecord,
    outcome: Outcome,
    progress: Progress,
    events: Sequence[TurnEvent],
    owner_id: UUID,
) -> TransactionScript[TurnRecord | None]:
    """Let a turn wait for actions, without an owner: store its text, events and usage so far.

    Returns the turn as a new attempt of `owner_id` if all actions were taken meanwhile. Doing it
    twice changes nothing. Raises `TurnLost`.
    """
    now = utc_now()
    yield from lock_session(record, now)
    row = yield from leases.find_row(record.workspace_id, record.id)
    if row is None or row.attempt != record.attempt or row.status in _SETTLED:
        raise turn_lost()
    if row.status is TurnStatus.IN_PROGRESS:
        yield [
            _SUSPEND(
                workspace_id_=record.workspace_id,
                turn_id_=record.id,
                model=progress.model,
                timings=progress.timings,
                **receipts.usage_columns(progress),
            ),
            turn_statements.SETTLE_MESSAGE(
                workspace_id_=record.workspace_id,
                message_id_=record.message_id,
                content=outcome.content,
                status=outcome.message_status,
            ),
            *_parts_stmts(record, outcome),
            *ledger.bill_steps_stmts(record),
            *event_store.insert_events_stmts(record, events, now),
            *receipts.settle_reservation_stmts(record, progress),
        ]
    return (yield from resolution.resume(record.workspace_id, record.id, owner_id))


def store_outcome_stmt(
    record: TurnRecord, outcome: Outcome, progress: Progress, ended_at: datetime
) -> Statement:
    """Return the statement that stores the turn's end if its attempt is still current."""
    error = outcome.error
    return turn_statements.SETTLE_TURN(
        workspace_id_=record.workspace_id,
        session_id_=record.session_id,
        turn_id_=record.id,
        attempt_=record.attempt,
        status=outcome.status,
        ended_at=ended_at,
        error_code=error.code if error else None,
        error_detail=error.detail if error else None,
        finish_reason=progress.finish_reason,
        stop_reason=progress.stop_reason,
        model=progress.model,
        timings=progress.timings,
        **receipts.usage_columns(progress),
    )


def _promote_next(
    record: TurnRecord, owner_id: UUID, now: datetime
) -> TransactionScript[TurnRecord | None]:
    session = {"workspace_id_": record.workspace_id, "session_id_": record.session_id}
    unsettled = yield from fetch_one(_UNSETTLED_TURNS(**session))
    # The session is locked, so no other transaction can promote a turn.
    next_id, is_queued = unsettled[0][0], unsettled[0][1] is TurnStatus.QUEUED
    if not is_queued:
        return None
    ((*columns,),) = yield from fetch_one(
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


def _suspend_stmt(_dialect: Dialect) -> Update:
    names = (
        "model", "timings", "prompt_tokens", "cached_tokens", "completion_tokens",
        "speech_in_seconds", "speech_out_characters", "cost_nanos", "usage_estimated",
    )  # fmt: skip
    return (
        update(turns)
        .where(is_turn())
        .values(
            status=TurnStatus.REQUIRES_ACTION,
            owner_id=None,
            lease_expires_at=None,
            reserved_day=None,
            reserved_tokens=None,
            reserved_nanos=None,
            **same_named_parameters(*names),
        )
    )


def _fail_unheard_stmt(_dialect: Dialect) -> Update:
    return (
        update(messages)
        .where(is_message(), messages.c.status == MessageStatus.IN_PROGRESS)
        .values(status=MessageStatus.FAILED)
    )


def _unsettled_turns_stmt(_dialect: Dialect) -> ClauseElement:
    """Select the session's unsettled turns: the live one first, then queued ones by age."""
    return (
        select(turns.c.id, turns.c.status)
        .where(in_session(), text(UNSETTLED))
        .order_by(text(f"CASE WHEN {LIVE} THEN 0 ELSE 1 END"), turns.c.user_seq)
    )


def _promoted_stmt(_dialect: Dialect) -> ClauseElement:
    return select(*TURN_COLUMNS).where(
        in_session(),
        turns.c.status == TurnStatus.IN_PROGRESS,
        turns.c.owner_id == bindparam("owner_id_"),
    )


def _promote_stmt(dialect: Dialect) -> Update:
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


_SUSPEND = PreparedStatement(_suspend_stmt)
_FAIL_UNHEARD = PreparedStatement(_fail_unheard_stmt)
_UNSETTLED_TURNS = PreparedStatement(_unsettled_turns_stmt)
_ENDED_AT = PreparedStatement(lambda _: select(turns.c.ended_at).where(is_attempt()))
_PROMOTED = PreparedStatement(_promoted_stmt)
_PROMOTE = PreparedStatement(_promote_stmt)
