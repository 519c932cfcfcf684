"""The script of a used idempotency key: its turn is found, or run again where it failed."""

from dataclasses import replace
from uuid import UUID

from sqlalchemy import Dialect, Update, bindparam, null, select, text, update
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import UNSETTLED, MessageStatus, TurnStatus, utc_now
from app.services.turns import receipts
from app.services.turns.errors import error_of_code, is_retryable
from app.services.turns.records import TurnRecord
from app.services.turns.steps import has_acted
from app.services.turns.storage import event_store, leases, ledger, turn_statements
from app.services.turns.storage.tables import (
    LEASE,
    in_session,
    is_attempt,
    is_turn,
    lease_end,
    same_named_parameters,
    turns,
)
from app.services.turns.storage.turn_rows import TURN_COLUMNS, TurnRow, load_record, lock_session
from app.services.usage import Account, budgets


def run_again_or_find(
    workspace_id: UUID,
    turn_id: UUID,
    account: Account,
    owner_id: UUID,
    *,
    whatever_error: bool = False,
) -> TransactionScript[tuple[TurnRecord, bool]]:
    """Return the turn of a used idempotency key, and whether it is only found.

    A turn that failed with a retryable error (or `whatever_error`), and did nothing with its
    tools, is run again and charged to `account`.
    """
    record = yield from leases.find(workspace_id, turn_id)
    if record.status is not TurnStatus.FAILED:
        return record, True
    now = utc_now()
    turn = {"workspace_id_": workspace_id, "turn_id_": turn_id}
    yield from lock_session(record, now)
    failed, unsettled = yield [
        _FAILED_TURN(**turn),
        UNSETTLED_IDS(workspace_id_=workspace_id, session_id_=record.session_id),
    ]
    error_code, user_id, *reserved = failed[0]
    may_run = whatever_error or is_retryable(error_of_code(error_code or "", ""))
    if not may_run or has_acted(record.steps):
        return record, True
    live = not unsettled
    reservation = receipts.repeated_reservation(account, record.persona, now, user_id, *reserved)
    run_again = _RESTART_LIVE if live else _RESTART_QUEUED
    rows = yield from fetch_one(
        run_again(
            **turn,
            attempt_=record.attempt,
            status=TurnStatus.IN_PROGRESS if live else TurnStatus.QUEUED,
            owner_id=owner_id if live else None,
            started_at=now if live else None,
            lease_end_=now + LEASE,
            key_id=account.key_id,
            **receipts.reserved_columns(reservation),
        )
    )
    if not rows:  # another request with the same key restarted it first
        record = yield from leases.find(workspace_id, turn_id)
        return record, True
    yield [
        turn_statements.SETTLE_MESSAGE(
            workspace_id_=workspace_id,
            message_id_=record.message_id,
            content="",
            status=MessageStatus.IN_PROGRESS,
        ),
        *event_store.discard_events_stmts(record),
        *(ledger.discard_steps_stmts(record) if record.steps else ()),
    ]
    restarted = yield from load_record(TurnRow(*rows[0]), history=live)
    yield from budgets.reserve(account, reservation)
    return replace(restarted, was_queued=not live), False


def _unsettled_ids_stmt(_dialect: Dialect) -> ClauseElement:
    unsettled = select(turns.c.id, turns.c.status).where(in_session(), text(UNSETTLED))
    return unsettled.order_by(turns.c.user_seq)


def _failed_turn_stmt(_dialect: Dialect) -> ClauseElement:
    columns = (
        turns.c.error_code, turns.c.user_id, turns.c.reserved_tokens, turns.c.reserved_nanos
    )  # fmt: skip
    return select(*columns).where(is_turn())


def _restart_live_stmt(dialect: Dialect) -> Update:
    return _restart_stmt().values(lease_expires_at=lease_end(dialect))


def _restart_queued_stmt(_dialect: Dialect) -> Update:
    return _restart_stmt().values(lease_expires_at=null())


def _restart_stmt() -> Update:
    return (
        update(turns)
        .where(is_attempt(), turns.c.status == TurnStatus.FAILED)
        .values(
            status=bindparam("status"),
            attempt=turns.c.attempt + 1,
            recoveries=0,
            owner_id=bindparam("owner_id"),
            started_at=bindparam("started_at"),
            ended_at=None,
            step_count=0,
            stop_reason=None,
            error_code=None,
            error_detail=None,
            cancel_requested_at=None,
            cancel_played_ms=None,
            key_id=bindparam("key_id"),
            **same_named_parameters(
                "reserved_day", "reserved_tokens", "reserved_nanos", "reserved_buckets"
            ),
        )
        .returning(*TURN_COLUMNS)
    )


UNSETTLED_IDS = PreparedStatement(_unsettled_ids_stmt)
"""Selects id and status of a session's unsettled turns, the oldest first."""
_FAILED_TURN = PreparedStatement(_failed_turn_stmt)
_RESTART_LIVE = PreparedStatement(_restart_live_stmt)
_RESTART_QUEUED = PreparedStatement(_restart_queued_stmt)
