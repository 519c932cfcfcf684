"""What the turn's statements are made of: tables, conditions, leases, and rows as records."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Row,
    Table,
    Update,
    and_,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models import LIVE, AgentVersion, Message, Session, Turn, TurnEventBatch
from app.services.turns.errors import TurnLost
from app.services.turns.prompt import LOADED_MESSAGES, HistoryMessage
from app.services.turns.records import Persona, TurnRecord

LEASE_SECONDS = 15

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
    duration = timedelta(seconds=LEASE_SECONDS)
    return func.now() + duration if on_postgres(connection) else literal(now + duration)


def own(connection: AsyncConnection, owner_id: UUID, now: datetime) -> Update:
    """Make turns `owner_id`'s, from now on."""
    return update(turns).values(
        owner_id=owner_id, lease_expires_at=lease_end(connection, now), started_at=now
    )


def require_one(result: CursorResult[Any]) -> None:
    """Raise `TurnLost` unless exactly one row was changed."""
    if result.rowcount != 1:
        raise TurnLost("The session was deleted, or another server took the turn over.")


async def lock_session(connection: AsyncConnection, record: TurnRecord, now: datetime) -> None:
    """Wait for the session's turn to be changed. Raises `TurnLost` where it is deleted."""
    locked = await connection.execute(
        update(sessions)
        .where(sessions.c.workspace_id == record.workspace_id)
        .where(sessions.c.id == record.session_id)
        .values(updated_at=now)
    )
    require_one(locked)


async def hold(connection: AsyncConnection, record: TurnRecord) -> None:
    """Lock the turn's row while it is still this attempt's."""
    held = await connection.execute(
        update(turns)
        .where(is_turn(record), turns.c.attempt == record.attempt, text(LIVE))
        .values(attempt=record.attempt)
    )
    require_one(held)


async def load_record(
    connection: AsyncConnection, row: Row[Any], *, history: bool = True
) -> TurnRecord:
    """Return the record of a row of `turns`, with the persona that it was accepted with."""
    persona = (
        await connection.execute(
            select(*PERSONA_COLUMNS)
            .join(
                Session,
                and_(
                    Session.workspace_id == AgentVersion.workspace_id,
                    Session.agent_id == AgentVersion.agent_id,
                ),
            )
            .where(
                Session.workspace_id == row.workspace_id,
                Session.id == row.session_id,
                AgentVersion.version == row.agent_version,
            )
        )
    ).one()
    record = TurnRecord(
        workspace_id=row.workspace_id,
        id=row.id,
        session_id=row.session_id,
        modality=row.modality,
        status=row.status,
        attempt=row.attempt,
        user_message_id=row.user_message_id,
        message_id=row.message_id,
        user_seq=row.user_seq,
        created_at=row.created_at,
        persona=Persona(*persona),
        history=(),
        events_after=await _last_event_number(connection, row),
    )
    return await with_history(connection, record) if history else record


async def _last_event_number(connection: AsyncConnection, row: Row[Any]) -> int:
    last = await connection.scalar(
        select(func.max(turn_events.c.last_number)).where(
            turn_events.c.workspace_id == row.workspace_id, turn_events.c.turn_id == row.id
        )
    )
    return last or 0


async def with_history(connection: AsyncConnection, record: TurnRecord) -> TurnRecord:
    """Load the settled messages before the turn, and its question."""
    rows = await connection.execute(
        select(messages.c.seq, messages.c.role, messages.c.status, messages.c.content)
        .where(
            messages.c.workspace_id == record.workspace_id,
            messages.c.session_id == record.session_id,
            messages.c.seq <= record.user_seq,
        )
        .order_by(messages.c.seq.desc())
        .limit(LOADED_MESSAGES)
    )
    history = tuple(HistoryMessage(*row) for row in reversed(rows.all()))
    return replace(record, history=history)
