"""Store idempotency keys, in the same transaction as the work that they protect."""

from typing import Any
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
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.dml import ReturningInsert

from app.core.database.statements import PreparedStatement, Statement, upsert
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import IdempotencyKey, utc_now
from app.services.turns.errors import IdempotencyKeyReused
from app.services.turns.records import RequestKey, TurnRecord
from app.services.turns.retention import IDEMPOTENCY_KEY_RETENTION, SDK_RETRIES
from app.services.turns.storage.tables import idempotency_keys, same_named_parameters


def claim(workspace_id: UUID, key: RequestKey) -> TransactionScript[UUID | None]:
    """Insert the key, or return the id of its turn; waits for a concurrent request with it.

    The key that is made of a request without one is taken anew by its first sending, and where it
    is older than `SDK_RETRIES`. Raises `IdempotencyKeyReused` if it was used with another route or
    body.
    """
    new = _new_key(workspace_id, key)
    claimed = yield from fetch_one(_TAKE(**new) if key.sdk_try == 0 else _CLAIM(**new))
    if claimed:
        return None
    ((fingerprint, turn_id, created_at),) = yield from fetch_one(
        _FIND(workspace_id_=workspace_id, key_=key.key),
    )
    _require_same(fingerprint, key)
    if key.sdk_try is not None and created_at < new["created_at"] - SDK_RETRIES:
        yield [_TAKE(**new)]
        return None
    return turn_id


def find_turn(workspace_id: UUID, key: RequestKey) -> TransactionScript[UUID | None]:
    """Return the turn that has the key, if any; takes nothing.

    Raises `IdempotencyKeyReused` where it came with another route or body.
    """
    rows = yield from fetch_one(_FIND(workspace_id_=workspace_id, key_=key.key))
    if not rows:
        return None
    ((fingerprint, turn_id, _),) = rows
    _require_same(fingerprint, key)
    return turn_id


def link_turn_stmt(record: TurnRecord, key: RequestKey) -> Statement:
    """Return the statement that stores the key's turn."""
    return _LINK_TURN(workspace_id_=record.workspace_id, key_=key.key, turn_id=record.id)


async def claim_for_response(
    db: AsyncSession, workspace_id: UUID, key: RequestKey
) -> tuple[int, bytes] | None:
    """Insert the key for a request without a turn, or return its stored status and body.

    Raises `IdempotencyKeyReused` if it was used with another route or body.
    """
    connection = await db.connection()
    claimed = await connection.execute(_claim_stmt(connection.dialect), _new_key(workspace_id, key))
    if claimed.one_or_none():
        return None
    stored = await db.get_one(IdempotencyKey, (workspace_id, key.key))
    _require_same(stored.fingerprint, key)
    return stored.status or 0, stored.body or b""


async def store_response(
    db: AsyncSession, workspace_id: UUID, key: RequestKey, status: int, body: bytes
) -> None:
    """Store the response of the key's request."""
    await db.execute(
        update(IdempotencyKey)
        .where(IdempotencyKey.workspace_id == workspace_id, IdempotencyKey.key == key.key)
        .values(status=status, body=body)
    )


def prune() -> TransactionScript[None]:
    """Delete the keys that are older than `IDEMPOTENCY_KEY_RETENTION`."""
    yield [_PRUNE(before_=utc_now() - IDEMPOTENCY_KEY_RETENTION)]


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


def _claim_stmt(dialect: Dialect) -> ReturningInsert[Any]:
    return (
        upsert(dialect, idempotency_keys)
        .values(**same_named_parameters("workspace_id", "key", "fingerprint", "created_at"))
        .on_conflict_do_nothing()
        .returning(idempotency_keys.c.key)
    )


def _take_stmt(dialect: Dialect) -> ReturningInsert[Any]:
    inserted = upsert(dialect, idempotency_keys).values(
        **same_named_parameters("workspace_id", "key", "fingerprint", "created_at")
    )
    return inserted.on_conflict_do_update(
        index_elements=["workspace_id", "key"],
        set_={"turn_id": None, "created_at": inserted.excluded.created_at},
    ).returning(idempotency_keys.c.key)


def _find_stmt(_dialect: Dialect) -> ClauseElement:
    columns = idempotency_keys.c
    return select(columns.fingerprint, columns.turn_id, columns.created_at).where(_is_key())


def _link_turn_stmt(_dialect: Dialect) -> Update:
    return update(idempotency_keys).where(_is_key()).values(**same_named_parameters("turn_id"))


def _prune_stmt(_dialect: Dialect) -> Delete:
    return delete(idempotency_keys).where(idempotency_keys.c.created_at < bindparam("before_"))


_CLAIM = PreparedStatement(_claim_stmt)
_TAKE = PreparedStatement(_take_stmt)
_FIND = PreparedStatement(_find_stmt)
_LINK_TURN = PreparedStatement(_link_turn_stmt)
_PRUNE = PreparedStatement(_prune_stmt)
