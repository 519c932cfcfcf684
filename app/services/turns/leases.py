"""Who runs which turn: leases are renewed, given up, and taken over when their owner is gone."""

from collections.abc import Collection
from uuid import UUID

from sqlalchemy import ColumnElement, Dialect, Update, bindparam, select, text, update
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct, Program, one
from app.models import LIVE, Modality, utc_now
from app.services.crud import TurnNotFound
from app.services.turns import audio_store
from app.services.turns.loading import TURN_COLUMNS, TurnRow, load_record
from app.services.turns.records import TurnRecord
from app.services.turns.statements import LEASE, clock, is_attempt, is_turn, lease_end, turns


def renew_leases(owner_id: UUID) -> Program[None]:
    """Say that `owner_id` is alive."""
    yield [_RENEW(owner_id_=owner_id, lease_end_=utc_now() + LEASE)]


def release(record: TurnRecord) -> Program[None]:
    """Give a live turn up, so that any process may take it over at once."""
    yield [_RELEASE(workspace_id_=record.workspace_id, turn_id_=record.id, attempt_=record.attempt)]


def claim_orphans(
    owner_id: UUID, running: Collection[UUID] = (), *, every: bool
) -> Program[list[tuple[TurnRecord, int]]]:
    """Take over live turns whose owner is gone; return each with how often that happened.

    `every`: all turns of others are orphans, for this is the only process on its database.
    Those in `running` go on as they are: a server that was late with its lease takes nothing over
    from itself.
    """
    now = utc_now()
    orphans = yield from one((_STRANGERS if every else _EXPIRED)(owner_id_=owner_id, now_=now))
    claimed: list[tuple[TurnRecord, int]] = []
    for workspace_id, turn_id in orphans:
        if turn_id in running:
            continue
        ((*columns,),) = yield from one(
            _TAKE_OVER(
                workspace_id_=workspace_id,
                turn_id_=turn_id,
                owner_id=owner_id,
                started_at=now,
                lease_end_=now + LEASE,
            )
        )
        row = TurnRow(*columns)
        record = yield from load_record(row)
        if record.modality is Modality.VOICE:
            yield [audio_store.forgetting(record)]
        claimed.append((record, row.recoveries))
    return claimed


def cancel_requests(owner_id: UUID) -> Program[list[tuple[UUID, int | None]]]:
    """Return those of `owner_id`'s live turns that somebody asked to end.

    Each with how many milliseconds of its sound had been played, where that was said.
    """
    asked = yield from one(_CANCEL_REQUESTS(owner_id_=owner_id))
    return [(turn_id, played_ms) for turn_id, played_ms in asked]


def find(workspace_id: UUID, turn_id: UUID) -> Program[TurnRecord]:
    """Load a turn, without its history. Raises `TurnNotFound`."""
    rows = yield from one(_FIND(workspace_id_=workspace_id, turn_id_=turn_id))
    if not rows:
        raise TurnNotFound("There is no such turn.")
    return (yield from load_record(TurnRow(*rows[0]), history=False))


def _renew(dialect: Dialect) -> Update:
    return (
        update(turns)
        .where(turns.c.owner_id == bindparam("owner_id_"), text(LIVE))
        .values(lease_expires_at=lease_end(dialect))
    )


def _release(_dialect: Dialect) -> Update:
    return (
        update(turns).where(is_attempt(), text(LIVE)).values(owner_id=None, lease_expires_at=None)
    )


def _expired(dialect: Dialect) -> ClauseElement:
    return _orphans(
        turns.c.lease_expires_at.is_(None) | (turns.c.lease_expires_at < clock(dialect))
    )


def _strangers(_dialect: Dialect) -> ClauseElement:
    return _orphans(turns.c.owner_id.is_(None) | (turns.c.owner_id != bindparam("owner_id_")))


def _orphans(condition: ColumnElement[bool]) -> ClauseElement:
    return (
        select(turns.c.workspace_id, turns.c.id)
        .where(text(LIVE), condition)
        .limit(100)
        .with_for_update(skip_locked=True)
    )


def _take_over(dialect: Dialect) -> Update:
    return (
        update(turns)
        .where(is_turn())
        .values(
            owner_id=bindparam("owner_id"),
            lease_expires_at=lease_end(dialect),
            started_at=bindparam("started_at"),
            attempt=turns.c.attempt + 1,
            recoveries=turns.c.recoveries + 1,
        )
        .returning(*TURN_COLUMNS)
    )


def _cancel_requests(_dialect: Dialect) -> ClauseElement:
    return select(turns.c.id, turns.c.cancel_played_ms).where(
        turns.c.owner_id == bindparam("owner_id_"),
        turns.c.cancel_requested_at.is_not(None),
        text(LIVE),
    )


def _find(_dialect: Dialect) -> ClauseElement:
    return select(*TURN_COLUMNS).where(is_turn())


_RENEW = Direct(_renew)
_RELEASE = Direct(_release)
_EXPIRED = Direct(_expired)
_STRANGERS = Direct(_strangers)
_TAKE_OVER = Direct(_take_over)
_CANCEL_REQUESTS = Direct(_cancel_requests)
_FIND = Direct(_find)
