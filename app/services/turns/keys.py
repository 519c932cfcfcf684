"""Idempotency keys: stored in the transaction that does the work, or not at all."""

from typing import cast
from uuid import UUID

from sqlalchemy import ColumnElement, Table, and_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.models import IdempotencyKey, utc_now
from app.services.turns.errors import IdempotencyKeyReused
from app.services.turns.records import RequestKey, TurnRecord

_keys = cast("Table", IdempotencyKey.__table__)


async def claim(connection: AsyncConnection, workspace_id: UUID, key: RequestKey) -> UUID | None:
    """Take the key, or return the turn that has it; waits for a request that is taking it.

    Raises `IdempotencyKeyReused` where it came with another route or body.
    """
    if await _insert(connection, workspace_id, key):
        return None
    row = (
        await connection.execute(
            select(_keys.c.fingerprint, _keys.c.turn_id).where(_is_key(workspace_id, key))
        )
    ).one()
    _require_same(row.fingerprint, key)
    return row.turn_id


async def point_to_turn(connection: AsyncConnection, record: TurnRecord, key: RequestKey) -> None:
    """Remember which turn came of the key."""
    await connection.execute(
        update(_keys).where(_is_key(record.workspace_id, key)).values(turn_id=record.id)
    )


async def claim_for_answer(
    db: AsyncSession, workspace_id: UUID, key: RequestKey
) -> tuple[int, bytes] | None:
    """Take the key for a request that is answered at once, or return what was answered.

    Raises `IdempotencyKeyReused` where it came with another route or body.
    """
    if await _insert(await db.connection(), workspace_id, key):
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


async def _insert(connection: AsyncConnection, workspace_id: UUID, key: RequestKey) -> bool:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    inserted = await connection.execute(
        dialect.insert(_keys)
        .values(
            workspace_id=workspace_id,
            key=key.key,
            fingerprint=key.fingerprint,
            created_at=utc_now(),
        )
        .on_conflict_do_nothing()
    )
    return inserted.rowcount == 1


def _require_same(fingerprint: bytes, key: RequestKey) -> None:
    if fingerprint != key.fingerprint:
        raise IdempotencyKeyReused(
            "This Idempotency-Key came with another request before: use a new one for each."
        )


def _is_key(workspace_id: UUID, key: RequestKey) -> ColumnElement[bool]:
    return and_(_keys.c.workspace_id == workspace_id, _keys.c.key == key.key)
