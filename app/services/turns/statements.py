"""What the turn's statements are made of: tables, conditions, leases, and rows as records."""

from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Table,
    Update,
    and_,
    func,
    literal,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models import LIVE, AgentVersion, Message, Session, Turn, TurnEventBatch
from app.services.turns.errors import TurnLost
from app.services.turns.records import TurnRecord

LEASE_SECONDS = 15
LEASE = timedelta(seconds=LEASE_SECONDS)

turns = cast("Table", Turn.__table__)
messages = cast("Table", Message.__table__)
sessions = cast("Table", Session.__table__)
turn_events = cast("Table", TurnEventBatch.__table__)
PERSONA_COLUMNS: tuple[ColumnElement[Any], ...] = (
    AgentVersion.__table__.c.version,
    AgentVersion.__table__.c.system_prompt,
    AgentVersion.__table__.c.model,
    AgentVersion.__table__.c.temperature,
    AgentVersion.__table__.c.max_output_tokens,
    AgentVersion.__table__.c.context_tokens,
    AgentVersion.__table__.c.voice,
    AgentVersion.__table__.c.language,
)


def in_session(workspace_id: UUID, session_id: UUID) -> ColumnElement[bool]:
    """Select the turns of a session."""
    return and_(turns.c.workspace_id == workspace_id, turns.c.session_id == session_id)


def is_turn(record: TurnRecord) -> ColumnElement[bool]:
    """Select one turn."""
    return and_(turns.c.workspace_id == record.workspace_id, turns.c.id == record.id)


def is_message(record: TurnRecord, message_id: UUID) -> ColumnElement[bool]:
    """Select one message of the turn's workspace."""
    return and_(messages.c.workspace_id == record.workspace_id, messages.c.id == message_id)


def on_postgres(connection: AsyncConnection) -> bool:
    """Tell the two databases apart."""
    return connection.dialect.name == "postgresql"


def lease_end(connection: AsyncConnection, now: datetime) -> ColumnElement[Any]:
    """Return when a lease that begins now ends."""
    # The database's clock where several servers compare it; theirs may differ.
    return func.now() + LEASE if on_postgres(connection) else literal(now + LEASE)


def own(connection: AsyncConnection, owner_id: UUID, now: datetime) -> Update:
    """Make turns `owner_id`'s, from now on."""
    return update(turns).values(
        owner_id=owner_id, lease_expires_at=lease_end(connection, now), started_at=now
    )


def require_one(result: CursorResult[Any]) -> None:
    """Raise `TurnLost` unless exactly one row was changed."""
    if result.rowcount != 1:
        raise lost()


def lost() -> TurnLost:
    """Return the error of an attempt that is not the turn's any more."""
    return TurnLost("The session was deleted, or another server took the turn over.")


async def hold(connection: AsyncConnection, record: TurnRecord) -> None:
    """Lock the turn's row while it is still this attempt's."""
    held = await connection.execute(
        update(turns)
        .where(is_turn(record), turns.c.attempt == record.attempt, text(LIVE))
        .values(attempt=record.attempt)
    )
    require_one(held)
