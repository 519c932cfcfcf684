"""Reads and writes of the conversation tables, for everything but the turn itself.

Each function takes the caller's transaction as `db` and never commits. Those of agents take the
caller's workspace, and another workspace's row does not exist. Those of sessions take the caller,
and neither does another end user's.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Uuid, and_, delete, func, or_, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller, Forbidden
from app.models import (
    PERSONA_FIELDS,
    Agent,
    AgentVersion,
    IdempotencyKey,
    Message,
    MessageStatus,
    Session,
    Turn,
    utc_now,
)
from app.services.conversation_errors import (
    AgentArchived,
    AgentNotFound,
    MessageNotFound,
    SessionBusy,
    SessionNotFound,
    TurnNotFound,
    VersionNotFound,
)
from app.services.usage.reports import keep_usage_of_session


class PersonaChanges(TypedDict, total=False):
    """Columns of an agent that a client may set."""

    name: str
    system_prompt: str
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    context_tokens: int | None
    voice: str | None
    language: str | None


class SessionChanges(TypedDict, total=False):
    """Columns of a session that a client may set."""

    title: str | None
    metadata_: dict[str, Any]
    user_id: str | None


async def create_agent(
    db: AsyncSession, workspace_id: UUID, **persona: Unpack[PersonaChanges]
) -> Agent:
    """Add an agent at version 1; its id is known when this returns."""
    agent = Agent(workspace_id=workspace_id, version=1, **persona)
    db.add(agent)
    await db.flush()
    await _record_version(db, agent)
    return agent


async def list_agents(
    db: AsyncSession,
    workspace_id: UUID,
    *,
    archived: bool,
    before_id: UUID | None,
    limit: int,
) -> Sequence[Agent]:
    """Return up to `limit` agents older than `before_id`, the newest first."""
    return (
        await db.scalars(
            select(Agent)
            .where(
                Agent.workspace_id == workspace_id,
                Agent.archived_at.is_not(None) if archived else Agent.archived_at.is_(None),
                Agent.id < before_id if before_id else true(),
            )
            .order_by(Agent.id.desc())
            .limit(limit)
        )
    ).all()


async def get_agent(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, *, for_update: bool = False
) -> Agent:
    """Load one agent, archived or not. Raises `AgentNotFound`."""
    agent = await db.get(Agent, (workspace_id, agent_id), with_for_update=for_update)
    if agent is None:
        raise AgentNotFound("There is no such agent.")
    return agent


async def update_agent(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, **changes: Unpack[PersonaChanges]
) -> Agent:
    """Set the given columns and no others, as a new version; nothing changed makes none.

    Raises `AgentNotFound` or `AgentArchived`.
    """
    agent = await get_agent(db, workspace_id, agent_id, for_update=True)
    if agent.archived_at:
        raise AgentArchived("An archived agent cannot be changed.")
    if all(getattr(agent, column) == value for column, value in changes.items()):
        return agent
    for column, value in changes.items():
        setattr(agent, column, value)
    agent.version += 1
    agent.updated_at = utc_now()
    await _record_version(db, agent)
    return agent


async def archive_agent(db: AsyncSession, workspace_id: UUID, agent_id: UUID) -> None:
    """Take the agent out of the list; its sessions can be read, but not go on.

    Archiving twice changes nothing. Raises `AgentNotFound`.
    """
    agent = await get_agent(db, workspace_id, agent_id, for_update=True)
    agent.archived_at = agent.archived_at or utc_now()


async def list_versions(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, *, before: int | None, limit: int
) -> Sequence[AgentVersion]:
    """Return up to `limit` versions below `before`, the newest first. Raises `AgentNotFound`."""
    await get_agent(db, workspace_id, agent_id)
    return (
        await db.scalars(
            select(AgentVersion)
            .where(
                AgentVersion.workspace_id == workspace_id,
                AgentVersion.agent_id == agent_id,
                AgentVersion.version < before if before is not None else true(),
            )
            .order_by(AgentVersion.version.desc())
            .limit(limit)
        )
    ).all()


async def restore_version(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, version: int
) -> Agent:
    """Make the agent as it was at `version`, as a new version.

    Raises `AgentNotFound`, `AgentArchived` or `VersionNotFound`.
    """
    await get_agent(db, workspace_id, agent_id)
    old = await db.get(AgentVersion, (workspace_id, agent_id, version))
    if old is None:
        raise VersionNotFound(f"The agent has no version {version}.")
    changes: Any = {field: getattr(old, field) for field in PERSONA_FIELDS}
    return await update_agent(db, workspace_id, agent_id, **changes)


async def _record_version(db: AsyncSession, agent: Agent) -> None:
    db.add(
        AgentVersion(
            workspace_id=agent.workspace_id,
            agent_id=agent.id,
            version=agent.version,
            **{field: getattr(agent, field) for field in PERSONA_FIELDS},
        )
    )
    await db.flush()


def visible_sessions(caller: Caller) -> ColumnElement[bool]:
    """Select the sessions that exist for the caller."""
    conditions = [Session.workspace_id == caller.workspace_id]
    if caller.user_id is not None:
        conditions.append(Session.user_id == caller.user_id)
    if caller.session_id is not None:
        conditions.append(Session.id == caller.session_id)
    return and_(*conditions)


async def create_session(
    db: AsyncSession, caller: Caller, agent_id: UUID, **columns: Unpack[SessionChanges]
) -> Session:
    """Open a conversation with an agent; an end user's is their own.

    Raises `AgentNotFound`, `AgentArchived`, or `Forbidden` where it would be another user's.
    """
    agent = await get_agent(db, caller.workspace_id, agent_id)
    if agent.archived_at:
        raise AgentArchived("An archived agent takes no new sessions.")
    if caller.user_id is not None:
        _require_own(caller, columns.setdefault("user_id", None) or caller.user_id)
        columns["user_id"] = caller.user_id
    session = Session(workspace_id=caller.workspace_id, agent_id=agent_id, last_seq=0, **columns)
    db.add(session)
    await db.flush()
    return session


def _require_own(caller: Caller, user_id: str | None) -> None:
    if caller.user_id is not None and user_id != caller.user_id:
        raise Forbidden("An end user's session belongs to that user.")


async def list_sessions(  # noqa: PLR0913  # one filter each
    db: AsyncSession,
    caller: Caller,
    *,
    agent_id: UUID | None,
    user_id: str | None,
    search: str | None,
    before_id: UUID | None,
    limit: int,
) -> Sequence[Session]:
    """Return up to `limit` sessions older than `before_id`, the newest first.

    `search` keeps those with all of its words in the title or in one message.
    """
    query = select(Session).where(visible_sessions(caller))
    if agent_id:
        query = query.where(Session.agent_id == agent_id)
    if user_id is not None:
        query = query.where(Session.user_id == user_id)
    if before_id:
        query = query.where(Session.id < before_id)
    if search is not None:
        on_postgres = db.get_bind().dialect.name == "postgresql"
        query = _matching(query, caller.workspace_id, search, full_text=on_postgres)
    return (await db.scalars(query.order_by(Session.id.desc()).limit(limit))).all()


def _matching(
    query: Select[Any], workspace_id: UUID, search: str, *, full_text: bool
) -> Select[Any]:
    words = search.split()
    title = and_(*(Session.title.icontains(word, autoescape=True) for word in words))
    # Full-text search cuts at spaces, so languages without them are searched as SQLite is.
    if full_text and search.isascii():
        # It knows the workspace from the transaction, as the row policies do.
        said = select(func.agent_platform.sessions_that_say(search, type_=Uuid()))
    else:
        content = and_(*(Message.content.icontains(word, autoescape=True) for word in words))
        said = select(Message.session_id).where(Message.workspace_id == workspace_id, content)
    return query.where(or_(title, Session.id.in_(said)))


async def get_session(
    db: AsyncSession, caller: Caller, session_id: UUID, *, for_update: bool = False
) -> Session:
    """Load one session. Raises `SessionNotFound`."""
    query = select(Session).where(visible_sessions(caller), Session.id == session_id)
    session = await db.scalar(query.with_for_update() if for_update else query)
    if session is None:
        raise SessionNotFound("There is no such session.")
    return session


async def update_session(
    db: AsyncSession, caller: Caller, session_id: UUID, **changes: Unpack[SessionChanges]
) -> Session:
    """Set the given columns and no others.

    Raises `SessionNotFound`, or `Forbidden` where an end user would give the session away.
    """
    session = await get_session(db, caller, session_id, for_update=True)
    if "user_id" in changes:
        _require_own(caller, changes["user_id"])
    for column, value in changes.items():
        setattr(session, column, value)
    session.updated_at = utc_now()
    return session


async def delete_session(db: AsyncSession, caller: Caller, session_id: UUID) -> None:
    """Delete a session and all but its bill, for good; also the stored answer that made it.

    Raises `SessionNotFound`. A turn that still runs finds its session gone and stores nothing.
    """
    await get_session(db, caller, session_id, for_update=True)
    await keep_usage_of_session(db, caller.workspace_id, session_id)
    await db.execute(delete(Session).where(visible_sessions(caller), Session.id == session_id))
    made = f'{{"id":"{session_id}"'.encode()
    await db.execute(
        delete(IdempotencyKey).where(
            IdempotencyKey.workspace_id == caller.workspace_id,
            func.substr(IdempotencyKey.body, 1, len(made)) == made,
        )
    )


async def list_messages(
    db: AsyncSession,
    session: Session,
    *,
    after_seq: int = 0,
    limit: int | None = None,
) -> Sequence[Message]:
    """Return messages with a `seq` above `after_seq`, oldest first; all without `limit`."""
    return (
        await db.scalars(
            select(Message)
            .where(
                Message.workspace_id == session.workspace_id,
                Message.session_id == session.id,
                Message.seq > after_seq,
            )
            .order_by(Message.seq)
            .limit(limit)
        )
    ).all()


async def fork_session(
    db: AsyncSession, caller: Caller, session_id: UUID, *, up_to_seq: int | None
) -> Session:
    """Copy a session with its settled messages up to `up_to_seq`, or all of them.

    Raises `SessionNotFound`, `AgentArchived`, `MessageNotFound` where the session has no such
    message, and `SessionBusy` where one that would be copied is not settled yet.
    """
    original = await get_session(db, caller, session_id, for_update=True)
    messages = await list_messages(db, original)
    if up_to_seq is not None:
        if up_to_seq > original.last_seq:
            raise MessageNotFound(f"The session has no message {up_to_seq}.")
        messages = messages[:up_to_seq]
    if any(message.status is MessageStatus.IN_PROGRESS for message in messages):
        raise SessionBusy("A turn is not finished: wait for it, or fork up to a message before it.")
    fork = await create_session(
        db,
        caller,
        original.agent_id,
        title=original.title,
        metadata_=original.metadata_,
        user_id=original.user_id,
    )
    fork.last_seq = len(messages)
    fork.forked_from_session_id = original.id
    fork.forked_from_seq = len(messages)
    db.add_all(
        Message(
            workspace_id=caller.workspace_id,
            session_id=fork.id,
            seq=message.seq,
            role=message.role,
            modality=message.modality,
            status=message.status,
            content=message.content,
            heard_content=message.heard_content,
            created_at=message.created_at,
        )
        for message in messages
    )
    await db.flush()
    return fork


async def list_turns(db: AsyncSession, session: Session) -> Sequence[Turn]:
    """Return every turn of a session, oldest first."""
    return (
        await db.scalars(
            select(Turn)
            .where(Turn.workspace_id == session.workspace_id, Turn.session_id == session.id)
            .order_by(Turn.user_seq)
        )
    ).all()


async def get_turn(db: AsyncSession, caller: Caller, turn_id: UUID) -> tuple[Turn, Message]:
    """Load one turn and the assistant's message of it. Raises `TurnNotFound`."""
    row = (
        await db.execute(
            select(Turn, Message)
            .join(
                Message,
                and_(Message.workspace_id == Turn.workspace_id, Message.id == Turn.message_id),
            )
            .join(
                Session,
                and_(Session.workspace_id == Turn.workspace_id, Session.id == Turn.session_id),
            )
            .where(Turn.workspace_id == caller.workspace_id, Turn.id == turn_id)
            .where(visible_sessions(caller))
        )
    ).one_or_none()
    if row is None:
        raise TurnNotFound("There is no such turn.")
    turn, message = row
    return turn, message
