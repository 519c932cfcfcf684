"""A turn's way into the database and its end there, in Core: the steps of short transactions.

Every function that changes a session's turns first locks the session's row, so that order and
queue are decided one at a time; on SQLite `BEGIN IMMEDIATE` does the same.
"""

from datetime import datetime
from uuid import UUID

from sqlalchemy import and_, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.models import (
    LIVE,
    UNSETTLED,
    Agent,
    AgentVersion,
    MessageStatus,
    Modality,
    Role,
    TurnStatus,
    new_id,
    utc_now,
)
from app.services.crud import AgentArchived, SessionNotFound
from app.services.turns.errors import SessionQueueFull
from app.services.turns.records import Outcome, Persona, Progress, TurnRecord
from app.services.turns.statements import (
    PERSONA_COLUMNS,
    in_session,
    is_message,
    is_turn,
    lease_end,
    load_record,
    messages,
    own,
    require_one,
    sessions,
    turns,
    with_history,
)

QUEUE_LIMIT = 8
"""Turns that may wait in one session."""


async def accept(  # noqa: PLR0913  # what a turn is
    connection: AsyncConnection,
    *,
    workspace_id: UUID,
    session_id: UUID,
    modality: Modality,
    content: str,
    owner_id: UUID,
) -> TurnRecord:
    """Store the user's message, the assistant's place and the turn, live or queued.

    A voice turn's `content` is empty until it is heard. Raises `SessionNotFound`,
    `AgentArchived` or `SessionQueueFull`.
    """
    now = utc_now()
    last_seq, agent_id = await _take_places(connection, workspace_id, session_id, now)
    persona = await _current_persona(connection, workspace_id, agent_id)
    waiting = await connection.scalar(
        select(func.count())
        .select_from(turns)
        .where(in_session(workspace_id, session_id), text(UNSETTLED))
    )
    if waiting and waiting > QUEUE_LIMIT:
        raise SessionQueueFull(
            f"{QUEUE_LIMIT} turns wait in this session already.", retry_after_seconds=2
        )
    live = not waiting
    record = TurnRecord(
        workspace_id=workspace_id,
        id=new_id(),
        session_id=session_id,
        modality=modality,
        status=TurnStatus.IN_PROGRESS if live else TurnStatus.QUEUED,
        attempt=1,
        user_message_id=new_id(),
        message_id=new_id(),
        user_seq=last_seq - 1,
        created_at=now,
        persona=persona,
        history=(),
    )
    await connection.execute(
        insert(turns).values(
            workspace_id=workspace_id,
            id=record.id,
            session_id=session_id,
            agent_version=persona.version,
            modality=modality,
            status=record.status,
            user_message_id=record.user_message_id,
            message_id=record.message_id,
            user_seq=record.user_seq,
            created_at=now,
            owner_id=owner_id if live else None,
            lease_expires_at=lease_end(connection, now) if live else None,
            started_at=now if live else None,
        )
    )
    heard = MessageStatus.COMPLETED if modality is Modality.TEXT else MessageStatus.IN_PROGRESS
    common = {
        "workspace_id": workspace_id,
        "session_id": session_id,
        "turn_id": record.id,
        "modality": modality,
        "created_at": now,
    }
    await connection.execute(
        insert(messages),
        [
            common
            | {"id": record.user_message_id, "seq": last_seq - 1, "role": Role.USER}
            | {"status": heard, "content": content},
            common
            | {"id": record.message_id, "seq": last_seq, "role": Role.ASSISTANT}
            | {"status": MessageStatus.IN_PROGRESS, "content": ""},
        ],
    )
    return await with_history(connection, record) if live else record


async def hear(connection: AsyncConnection, record: TurnRecord, words: str) -> None:
    """Store what a voice turn's user said. Raises `TurnLost`."""
    await _hold(connection, record)
    await connection.execute(
        update(messages)
        .where(is_message(record, record.user_message_id))
        .values(content=words, status=MessageStatus.COMPLETED)
    )


async def settle(
    connection: AsyncConnection,
    record: TurnRecord,
    outcome: Outcome,
    progress: Progress,
    owner_id: UUID,
) -> TurnRecord | None:
    """Store how the turn ended; return the session's next turn, which is `owner_id`'s now.

    Raises `TurnLost` when the turn is not this attempt's any more; then nothing is stored.
    """
    now = utc_now()
    await _lock_session(connection, record, now)
    settled = await connection.execute(
        update(turns)
        .where(is_turn(record), turns.c.attempt == record.attempt, text(UNSETTLED))
        .values(
            status=outcome.status,
            ended_at=now,
            owner_id=None,
            lease_expires_at=None,
            error_code=outcome.error.code if outcome.error else None,
            error_detail=outcome.error.detail if outcome.error else None,
            finish_reason=progress.finish_reason,
            model=progress.model,
            prompt_tokens=progress.usage.prompt_tokens,
            cached_tokens=progress.usage.cached_tokens,
            completion_tokens=progress.usage.completion_tokens,
            speech_in_seconds=progress.speech_in_seconds,
            speech_out_characters=progress.speech_out_characters,
            timings=progress.timings,
        )
    )
    require_one(settled)
    await connection.execute(
        update(messages)
        .where(is_message(record, record.message_id))
        .values(content=outcome.content, status=outcome.message_status)
    )
    if record.modality is Modality.VOICE:
        await connection.execute(
            update(messages)
            .where(
                is_message(record, record.user_message_id),
                messages.c.status == MessageStatus.IN_PROGRESS,
            )
            .values(status=MessageStatus.FAILED)
        )
    return await _promote_next(connection, record, owner_id, now)


async def _take_places(
    connection: AsyncConnection, workspace_id: UUID, session_id: UUID, now: datetime
) -> tuple[int, UUID]:
    """Lock the session and take two numbers; return the second and the agent's id."""
    row = (
        await connection.execute(
            update(sessions)
            .where(sessions.c.workspace_id == workspace_id, sessions.c.id == session_id)
            .values(last_seq=sessions.c.last_seq + 2, updated_at=now)
            .returning(sessions.c.last_seq, sessions.c.agent_id)
        )
    ).one_or_none()
    if row is None:
        raise SessionNotFound(f"There is no session {session_id}.")
    return row.last_seq, row.agent_id


async def _current_persona(
    connection: AsyncConnection, workspace_id: UUID, agent_id: UUID
) -> Persona:
    row = (
        await connection.execute(
            select(Agent.archived_at, *PERSONA_COLUMNS)
            .join(
                AgentVersion,
                and_(
                    AgentVersion.workspace_id == Agent.workspace_id,
                    AgentVersion.agent_id == Agent.id,
                    AgentVersion.version == Agent.version,
                ),
            )
            .where(Agent.workspace_id == workspace_id, Agent.id == agent_id)
        )
    ).one()
    archived_at, *persona = row
    if archived_at:
        raise AgentArchived("The session's agent is archived: it takes no new messages.")
    return Persona(*persona)


async def _promote_next(
    connection: AsyncConnection, record: TurnRecord, owner_id: UUID, now: datetime
) -> TurnRecord | None:
    oldest = (
        select(turns.c.id)
        .where(in_session(record.workspace_id, record.session_id), text("status = 'queued'"))
        .where(text(UNSETTLED))
        .order_by(turns.c.user_seq)
        .limit(1)
        .scalar_subquery()
    )
    live = select(turns.c.id).where(in_session(record.workspace_id, record.session_id), text(LIVE))
    row = (
        await connection.execute(
            own(connection, owner_id, now)
            .where(turns.c.workspace_id == record.workspace_id, turns.c.id == oldest)
            .where(~live.exists())
            .values(status=TurnStatus.IN_PROGRESS)
            .returning(*turns.c)
        )
    ).one_or_none()
    return await load_record(connection, row) if row else None


async def _lock_session(connection: AsyncConnection, record: TurnRecord, now: datetime) -> None:
    locked = await connection.execute(
        update(sessions)
        .where(sessions.c.workspace_id == record.workspace_id)
        .where(sessions.c.id == record.session_id)
        .values(updated_at=now)
    )
    require_one(locked)


async def _hold(connection: AsyncConnection, record: TurnRecord) -> None:
    """Lock the turn's row while it is still this attempt's."""
    held = await connection.execute(
        update(turns)
        .where(is_turn(record), turns.c.attempt == record.attempt, text(LIVE))
        .values(attempt=record.attempt)
    )
    require_one(held)
