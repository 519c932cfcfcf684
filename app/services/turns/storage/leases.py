"""Leases of live turns: renew, release, and take over when they expire."""

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Dialect,
    Update,
    and_,
    any_,
    bindparam,
    select,
    text,
    update,
)
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import LIVE, Modality, TurnStatus, utc_now
from app.services.crud import turn_not_found
from app.services.turns.records import TurnRecord
from app.services.turns.storage import audio_store
from app.services.turns.storage.tables import (
    LEASE,
    is_attempt,
    is_turn,
    lease_clock,
    lease_end,
    turns,
)
from app.services.turns.storage.turn_rows import (
    TURN_COLUMNS,
    TurnRow,
    load_record,
)


class OwnedTurn(NamedTuple):
    """A running turn that the database says this process owns."""

    workspace_id: UUID
    id: UUID
    attempt: int


def renew_leases(owner_id: UUID, turn_ids: Sequence[UUID]) -> TransactionScript[None]:
    """Renew the leases of these turns of `owner_id`; on Postgres only.

    Only of turns that really run in this process: a lease of any other row of its must expire.
    """
    yield [_RENEW(owner_id_=owner_id, turn_ids_=turn_ids)]


def owned_turns(owner_id: UUID) -> TransactionScript[list[OwnedTurn]]:
    """Return the running turns of `owner_id`."""
    rows = yield from fetch_one(_OWNED(owner_id_=owner_id))
    return [OwnedTurn(*row) for row in rows]


def release(record: TurnRecord) -> TransactionScript[None]:
    """Release the lease of a live turn, so that any process may take it over at once."""
    yield [_RELEASE(workspace_id_=record.workspace_id, turn_id_=record.id, attempt_=record.attempt)]


def recover_expired(
    owner_id: UUID, running: Collection[UUID] = (), *, all_others: bool
) -> TransactionScript[list[tuple[TurnRecord, int]]]:
    """Take over live turns with expired leases; return each with its number of recoveries.

    `all_others`: take over all turns of other owners, because this is the only process on its
    database. Turns in `running` are skipped: a server whose own lease expired keeps its turns.
    """
    now = utc_now()
    expired = yield from fetch_one(
        (_OTHER_OWNERS if all_others else _EXPIRED)(owner_id_=owner_id, now_=now)
    )
    claimed: list[tuple[TurnRecord, int]] = []
    for workspace_id, turn_id in expired:
        if turn_id in running:
            continue
        ((*columns,),) = yield from fetch_one(
            _TAKE_OVER(
                workspace_id_=workspace_id,
                turn_id_=turn_id,
                owner_id=owner_id,
                started_at=now,
                lease_end_=now + LEASE,
            )
        )
        claimed.append((yield from _load_claimed(TurnRow(*columns))))
    return claimed


def take_on(
    owner_id: UUID, owned: Collection[OwnedTurn]
) -> TransactionScript[list[tuple[TurnRecord, int]]]:
    """Begin a new attempt of turns that `owner_id` owns but does not run; as `recover_expired`."""
    now = utc_now()
    claimed: list[tuple[TurnRecord, int]] = []
    for turn in owned:
        rows = yield from fetch_one(
            _TAKE_ON(
                workspace_id_=turn.workspace_id,
                turn_id_=turn.id,
                attempt_=turn.attempt,
                owner_id_=owner_id,
                owner_id=owner_id,
                started_at=now,
                lease_end_=now + LEASE,
            )
        )
        if rows:
            claimed.append((yield from _load_claimed(TurnRow(*rows[0]))))
    return claimed


def _load_claimed(row: TurnRow) -> TransactionScript[tuple[TurnRecord, int]]:
    record = yield from load_record(row)
    if record.output is Modality.VOICE:
        yield [audio_store.discard_pieces_stmt(record)]
    return record, row.recoveries


def cancel_requests(owner_id: UUID) -> TransactionScript[list[tuple[UUID, int | None]]]:
    """Return the live turns of `owner_id` with a cancel request.

    Each with the milliseconds of its audio that were played, if known.
    """
    rows = yield from fetch_one(_CANCEL_REQUESTS(owner_id_=owner_id))
    return [(turn_id, played_ms) for turn_id, played_ms in rows]


def find(workspace_id: UUID, turn_id: UUID) -> TransactionScript[TurnRecord]:
    """Load a stored turn without its history. Raises `TurnNotFound`."""
    row = yield from find_row(workspace_id, turn_id)
    if row is None or row.session_id is None:
        raise turn_not_found()
    return (yield from load_record(row, history=False))


def find_row(workspace_id: UUID, turn_id: UUID) -> TransactionScript[TurnRow | None]:
    """Load the row of a turn, if there is one."""
    rows = yield from fetch_one(_FIND(workspace_id_=workspace_id, turn_id_=turn_id))
    return TurnRow(*rows[0]) if rows else None


def _renew_stmt(dialect: Dialect) -> Update:
    owned = (
        update(turns)
        .where(turns.c.owner_id == bindparam("owner_id_"), text(LIVE))
        .values(lease_expires_at=lease_end(dialect))
    )
    if dialect.name != "postgresql":  # SQLite has no arrays, and its one process no leases to renew
        return owned
    return owned.where(turns.c.id == any_(bindparam("turn_ids_", type_=ARRAY(turns.c.id.type))))


def _owned_stmt(_dialect: Dialect) -> ClauseElement:
    return select(turns.c.workspace_id, turns.c.id, turns.c.attempt).where(
        turns.c.owner_id == bindparam("owner_id_"),
        turns.c.status == TurnStatus.IN_PROGRESS,
        text(LIVE),  # so that the planner uses the partial index
    )


def _release_stmt(_dialect: Dialect) -> Update:
    return (
        update(turns).where(is_attempt(), text(LIVE)).values(owner_id=None, lease_expires_at=None)
    )


def _expired_stmt(dialect: Dialect) -> ClauseElement:
    return _recoverable_stmt(
        turns.c.lease_expires_at.is_(None) | (turns.c.lease_expires_at < lease_clock(dialect))
    )


def _other_owners_stmt(_dialect: Dialect) -> ClauseElement:
    return _recoverable_stmt(
        turns.c.owner_id.is_(None) | (turns.c.owner_id != bindparam("owner_id_"))
    )


def _recoverable_stmt(condition: ColumnElement[bool]) -> ClauseElement:
    return (
        select(turns.c.workspace_id, turns.c.id)
        .where(turns.c.status == TurnStatus.IN_PROGRESS, condition)
        .where(text(LIVE))  # so that the planner uses the partial index
        .limit(100)
        .with_for_update(skip_locked=True)
    )


def _take_over_stmt(dialect: Dialect) -> Update:
    return _new_attempt_stmt(dialect, is_turn())


def _take_on_stmt(dialect: Dialect) -> Update:
    is_owned = turns.c.owner_id == bindparam("owner_id_")
    is_running = turns.c.status == TurnStatus.IN_PROGRESS
    return _new_attempt_stmt(dialect, and_(is_attempt(), is_owned, is_running))


def _new_attempt_stmt(dialect: Dialect, condition: ColumnElement[bool]) -> Update:
    return (
        update(turns)
        .where(condition)
        .values(
            owner_id=bindparam("owner_id"),
            lease_expires_at=lease_end(dialect),
            started_at=bindparam("started_at"),
            attempt=turns.c.attempt + 1,
            recoveries=turns.c.recoveries + 1,
        )
        .returning(*TURN_COLUMNS)
    )


def _cancel_requests_stmt(_dialect: Dialect) -> ClauseElement:
    return select(turns.c.id, turns.c.cancel_played_ms).where(
        turns.c.owner_id == bindparam("owner_id_"),
        turns.c.cancel_requested_at.is_not(None),
        text(LIVE),
    )


def _find_stmt(_dialect: Dialect) -> ClauseElement:
    return select(*TURN_COLUMNS).where(is_turn())


_RENEW = PreparedStatement(_renew_stmt)
_OWNED = PreparedStatement(_owned_stmt)
_TAKE_ON = PreparedStatement(_take_on_stmt)
_RELEASE = PreparedStatement(_release_stmt)
_EXPIRED = PreparedStatement(_expired_stmt)
_OTHER_OWNERS = PreparedStatement(_other_owners_stmt)
_TAKE_OVER = PreparedStatement(_take_over_stmt)
_CANCEL_REQUESTS = PreparedStatement(_cancel_requests_stmt)
_FIND = PreparedStatement(_find_stmt)
