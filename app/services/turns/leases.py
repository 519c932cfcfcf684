"""Who runs which turn: leases are renewed, given up, and taken over when their owner is gone."""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models import LIVE, utc_now
from app.services.crud import TurnNotFound
from app.services.turns.loading import load_record
from app.services.turns.records import TurnRecord
from app.services.turns.statements import (
    is_turn,
    lease_end,
    on_postgres,
    own,
    turns,
)


async def renew_leases(connection: AsyncConnection, owner_id: UUID) -> None:
    """Say that `owner_id` is alive."""
    await connection.execute(
        update(turns)
        .where(turns.c.owner_id == owner_id, text(LIVE))
        .values(lease_expires_at=lease_end(connection, utc_now()))
    )


async def release(connection: AsyncConnection, record: TurnRecord) -> None:
    """Give a live turn up, so that any process may take it over at once."""
    await connection.execute(
        update(turns)
        .where(is_turn(record), turns.c.attempt == record.attempt, text(LIVE))
        .values(owner_id=None, lease_expires_at=None)
    )


async def claim_orphans(
    connection: AsyncConnection, owner_id: UUID, *, every: bool
) -> list[tuple[TurnRecord, int]]:
    """Take over live turns whose owner is gone; return each with how often that happened.

    `every`: all turns of others are orphans, for this is the only process on its database.
    """
    now = utc_now()
    clock: ColumnElement[Any] = func.now() if on_postgres(connection) else literal(now)
    expired = turns.c.lease_expires_at.is_(None) | (turns.c.lease_expires_at < clock)
    another = turns.c.owner_id.is_(None) | (turns.c.owner_id != owner_id)
    orphans = await connection.execute(
        select(turns.c.workspace_id, turns.c.id)
        .where(text(LIVE), another if every else expired)
        .limit(100)
        .with_for_update(skip_locked=True)
    )
    claimed: list[tuple[TurnRecord, int]] = []
    for workspace_id, turn_id in orphans.all():
        row = (
            await connection.execute(
                own(connection, owner_id, now)
                .where(turns.c.workspace_id == workspace_id, turns.c.id == turn_id)
                .values(attempt=turns.c.attempt + 1, recoveries=turns.c.recoveries + 1)
                .returning(*turns.c)
            )
        ).one()
        claimed.append((await load_record(connection, row), row.recoveries))
    return claimed


async def cancel_requests(connection: AsyncConnection, owner_id: UUID) -> list[UUID]:
    """Return those of `owner_id`'s live turns that somebody asked to end."""
    asked = await connection.scalars(
        select(turns.c.id).where(
            turns.c.owner_id == owner_id, turns.c.cancel_requested_at.is_not(None), text(LIVE)
        )
    )
    return list(asked)


async def find(connection: AsyncConnection, workspace_id: UUID, turn_id: UUID) -> TurnRecord:
    """Load a turn, without its history. Raises `TurnNotFound`."""
    row = (
        await connection.execute(
            select(turns).where(turns.c.workspace_id == workspace_id, turns.c.id == turn_id)
        )
    ).one_or_none()
    if row is None:
        raise TurnNotFound(f"There is no turn {turn_id}.")
    return await load_record(connection, row, history=False)
