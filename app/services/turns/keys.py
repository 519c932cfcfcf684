"""Idempotency keys: stored in the transaction that does the work, or not at all."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Dialect, Update, and_, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.dml import ReturningInsert

from app.core.direct import Direct, Program, Statement, one, upsert
from app.models import IdempotencyKey, utc_now
from app.services.turns.errors import IdempotencyKeyReused
from app.services.turns.records import RequestKey, TurnRecord
from app.services.turns.statements import idempotency_keys, named


def claim(workspace_id: UUID, key: RequestKey) -> Program[UUID | None]:
    """Take the key, or return the turn that has it; waits for a request that is taking it.

    Raises `IdempotencyKeyReused` where it came with another route or body.
    """
    claimed = yield from one(_CLAIM(**_new_key(workspace_id, key)))
    if claimed:
        return None
    ((fingerprint, turn_id),) = yield from one(
        _FIND(workspace_id_=workspace_id, key_=key.key),
    )
    _require_same(fingerprint, key)
    return turn_id


def pointing_to_turn(record: TurnRecord, key: RequestKey) -> Statement:
    """Return what remembers which turn came of the key."""
    return _POINT(workspace_id_=record.workspace_id, key_=key.key, turn_id=record.id)


async def claim_for_answer(
    db: AsyncSession, workspace_id: UUID, key: RequestKey
) -> tuple[int, bytes] | None:
    """Take the key for a request that is answered at once, or return what was answered.

    Raises `IdempotencyKeyReused` where it came with another route or body.
    """
    connection = await db.connection()
    claimed = await connection.execute(_claim(connection.dialect), _new_key(workspace_id, key))
    if claimed.one_or_none():
        return None
    stored = await db.get_one(IdempotencyKey, (workspace_id, key.key))
    _require_same(stored.fingerprint, key)
    return stored.status or 0, stored.body or b""


async def keep_answer(
    db: AsyncSession, workspace_id: UUID, key: RequestKey, status: int, body: bytes
) -> None:
    """Remember what was answered."""
    await db.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.workspace_id == workspace_id, IdempotencyKey.key == key.key)
        .values(status=status, body=body)
    )


def _new_key(workspace_id: UUID, key: RequestKey) -> dict[str, Any]:
    return {
        "workspace_id": workspace_id,
        "key": key.key,
        "fingerprint": key.fingerprint,
        "created_at": utc_now(),
    }


def _require_same(fingerprint: bytes, key: RequestKey) -> None:
    if fingerprint != key.fingerprint:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came with another request before: use a new one for each."
        )


def _is_key() -> ColumnElement[bool]:
    return and_(
        idempotency_keys.c.workspace_id == bindparam("workspace_id_"),
        idempotency_keys.c.key == bindparam("key_"),
    )


def _claim(dialect: Dialect) -> ReturningInsert[Any]:
    return (
        upsert(dialect, idempotency_keys)
        .values(**named("workspace_id", "key", "fingerprint", "created_at"))
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )


def _find(_dialect: Dialect) -> ClauseElement:
    return select(idempotency_keys.c.fingerprint, idempotency_keys.c.turn_id).where(_is_key())


def _point(_dialect: Dialect) -> Update:
    return update(idempotency_keys).where(_is_key()).values(**named("turn_id"))


_CLAIM = Direct(_claim)
_FIND = Direct(_find)
_POINT = Direct(_point)
