"""Turns as they are loaded: a row, the persona that it was accepted with, and its history."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models import AgentVersion, Session
from app.services.turns import hot, receipts
from app.services.turns.prompt import HistoryMessage
from app.services.turns.records import Persona, TurnRecord
from app.services.turns.statements import PERSONA_COLUMNS, require_one, turn_events


async def lock_session(connection: AsyncConnection, record: TurnRecord, now: datetime) -> None:
    """Wait for the session's turn to be changed. Raises `TurnLost` where it is deleted."""
    key = {"workspace_id_": record.workspace_id, "session_id_": record.session_id}
    require_one(await connection.execute(hot.LOCK_SESSION, key | {"now": now}))


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
        reservation=receipts.reservation_of(row),
        earlier=receipts.earlier_of(row),
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
    rows = await hot.HISTORY.run(connection, history_of(record))
    return replace(record, history=read_history(rows))


def history_of(record: TurnRecord) -> dict[str, Any]:
    """Return the parameters of `hot.HISTORY`."""
    return {
        "workspace_id_": record.workspace_id,
        "session_id_": record.session_id,
        "user_seq_": record.user_seq,
    }


def read_history(rows: Sequence[tuple[Any, ...]]) -> tuple[HistoryMessage, ...]:
    """Return the rows of `hot.HISTORY`, oldest first."""
    return tuple(HistoryMessage(*row) for row in reversed(rows))
