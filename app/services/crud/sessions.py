"""Create, read, update, fork and delete sessions; list their messages.

Each function works in the caller's transaction `db` and never commits. Rows of another workspace
or of another end user are treated as absent.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller, Forbidden
from app.models import (
    UNSETTLED,
    IdempotencyKey,
    Message,
    MessageStatus,
    Modality,
    Role,
    Session,
    Turn,
    new_id,
    utc_now,
)
from app.services.crud.agents import get_agent
from app.services.crud.errors import (
    AgentArchived,
    MessageNotFound,
    SessionBusy,
    session_not_found,
)
from app.services.files import rows
from app.services.usage.budgets import release_waiting
from app.services.usage.reports import keep_usage_of_session
from app.services.usage.storage import row_bytes


class NewSession(TypedDict, total=False):
    """The columns of a new session, besides its agent."""

    id: UUID
    title: str | None
    metadata_: dict[str, Any]
    user_id: str | None
    is_hidden: bool


class SessionChanges(NewSession, total=False):
    """The columns of a session that a client may change."""

    agent_id: UUID


def visible_sessions(caller: Caller, *, without_agent: bool = False) -> ColumnElement[bool]:
    """Return the SQL condition for the sessions that the caller may see.

    `without_agent`: also conversations of OpenAI's API before their first turn.
    """
    conditions = [Session.workspace_id == caller.workspace_id]
    if not without_agent:
        conditions.append(Session.agent_id.is_not(None))
    if caller.user_id is not None:
        conditions.append(Session.user_id == caller.user_id)
    if caller.session_id is not None:
        conditions.append(Session.id == caller.session_id)
    return and_(*conditions)


async def create_session(
    db: AsyncSession,
    caller: Caller,
    agent_id: UUID,
    *,
    of_archived: bool = False,
    **columns: Unpack[NewSession],
) -> Session:
    """Insert a session with an agent; a session that an end user creates belongs to that user.

    `of_archived` lets the agent be archived.
    Raises `AgentNotFound`, `AgentArchived`, or `Forbidden` where an end user names another user.
    """
    agent = await get_agent(db, caller.workspace_id, agent_id)
    if agent.archived_at and not of_archived:
        raise AgentArchived("The agent is archived and accepts no new sessions: use another agent.")
    if caller.user_id is not None:
        _require_own(caller, columns.setdefault("user_id", None) or caller.user_id)
        columns["user_id"] = caller.user_id
    now = utc_now()
    session = Session(
        workspace_id=caller.workspace_id,
        agent_id=agent_id,
        last_seq=0,
        created_at=now,
        updated_at=now,
        **columns,
    )
    db.add(session)
    await db.flush()
    return session


async def create_conversation(
    db: AsyncSession, caller: Caller, metadata: dict[str, Any]
) -> Session:
    """Insert a session whose agent is named by its first turn; lists do not show it before."""
    now = utc_now()
    session = Session(
        workspace_id=caller.workspace_id,
        agent_id=None,
        user_id=caller.user_id,
        last_seq=0,
        metadata_=metadata,
        is_hidden=True,
        created_at=now,
        updated_at=now,
    )
    db.add(session)
    await db.flush()
    return session


def _require_own(caller: Caller, user_id: str | None) -> None:
    if caller.user_id is not None and user_id != caller.user_id:
        raise Forbidden("An end user cannot give a session to another user: omit `user_id`.")


class ImportedMessage(NamedTuple):
    """A message of another system; `created_at` is by default now."""

    role: Role
    content: str
    created_at: datetime | None = None


async def import_messages(
    db: AsyncSession, caller: Caller, session: Session, messages: Sequence[ImportedMessage]
) -> None:
    """Insert the messages of another system into a session that has none yet.

    Raises `Forbidden` for end users, who could put words into the agent's mouth.
    """
    if not messages:
        return
    _require_backend(caller)
    session.last_seq = len(messages)
    await db.flush()
    await _insert_messages(db, session, messages, 1)


async def _insert_messages(
    db: AsyncSession, session: Session, messages: Sequence[ImportedMessage], first_seq: int
) -> None:
    imported = [
        {
            "workspace_id": session.workspace_id,
            "session_id": session.id,
            "id": new_id(),
            "seq": seq,
            "role": message.role,
            "modality": Modality.TEXT,
            "status": MessageStatus.COMPLETED,
            "content": message.content,
            "created_at": message.created_at or session.updated_at,
        }
        for seq, message in enumerate(messages, start=first_seq)
    ]
    await db.execute(insert(Message), imported)


async def append_messages(
    db: AsyncSession, caller: Caller, session_id: UUID, messages: Sequence[ImportedMessage]
) -> None:
    """Add messages at the end of a session that no turn answers.

    Raises `SessionNotFound`, and `Forbidden` where an end user sends the agent's words.
    """
    if any(message.role is Role.ASSISTANT for message in messages):
        _require_backend(caller)
    session = await get_session(db, caller, session_id, for_update=True)
    first_seq = session.last_seq + 1
    session.last_seq += len(messages)
    session.updated_at = utc_now()
    await db.flush()
    await _insert_messages(db, session, messages, first_seq)


def _require_backend(caller: Caller) -> None:
    if caller.user_id is not None:
        raise Forbidden("End users cannot import messages: let your backend do it with a key.")


async def get_session(
    db: AsyncSession,
    caller: Caller,
    session_id: UUID,
    *,
    for_update: bool = False,
    without_agent: bool = False,
) -> Session:
    """Return one session. Raises `SessionNotFound`."""
    visible = visible_sessions(caller, without_agent=without_agent)
    query = select(Session).where(visible, Session.id == session_id)
    session = await db.scalar(query.with_for_update() if for_update else query)
    if session is None:
        raise session_not_found()
    return session


async def find_session_by_alias(db: AsyncSession, caller: Caller, alias: str) -> Session | None:
    """Return the session that a client calls so; `None` where there is none yet."""
    query = select(Session).where(visible_sessions(caller), Session.alias == alias)
    return await db.scalar(query)


async def keep_from_deletion(db: AsyncSession, caller: Caller, session_id: UUID) -> None:
    """Let nobody delete the session before this transaction ends. Raises `SessionNotFound`."""
    query = select(Session.id).where(visible_sessions(caller), Session.id == session_id)
    if await db.scalar(query.with_for_update(read=True, key_share=True)) is None:
        raise session_not_found()


async def update_session(
    db: AsyncSession, caller: Caller, session_id: UUID, **changes: Unpack[SessionChanges]
) -> Session:
    """Set the given columns of a session; another agent answers from its next turn.

    Raises `SessionNotFound`, `AgentNotFound`, `AgentArchived`, `SessionBusy` where the agent
    changes while a turn is not finished, or `Forbidden` where an end user names another user.
    """
    session = await get_session(db, caller, session_id, for_update=True)
    agent_id = changes.get("agent_id", session.agent_id)
    if agent_id and agent_id != session.agent_id:
        await _require_movable(db, session, agent_id)
    if "user_id" in changes:
        _require_own(caller, changes["user_id"])
    for column, value in changes.items():
        setattr(session, column, value)
    session.updated_at = utc_now()
    return session


async def _require_movable(db: AsyncSession, session: Session, agent_id: UUID) -> None:
    agent = await get_agent(db, session.workspace_id, agent_id)
    if agent.archived_at:
        raise AgentArchived("The agent is archived and accepts no new sessions: use another agent.")
    unsettled = select(Turn.id).where(
        Turn.workspace_id == session.workspace_id, Turn.session_id == session.id, text(UNSETTLED)
    )
    if await db.scalar(unsettled.limit(1)):
        raise SessionBusy("A turn is not finished: wait for it before the agent changes.")


async def delete_session(
    db: AsyncSession, caller: Caller, session_id: UUID, *, without_agent: bool = False
) -> None:
    """Delete a session permanently; keep only its usage for `GET /usage`.

    Also deletes the idempotency key whose stored response created the session. A turn that still
    runs is cancelled by its server, which stores what it used. Raises `SessionNotFound`.
    """
    await get_session(db, caller, session_id, for_update=True, without_agent=without_agent)
    # Turns before messages: the transaction that stores a transcript locks them in this order.
    await db.execute(
        select(Turn.id)
        .where(Turn.workspace_id == caller.workspace_id, Turn.session_id == session_id)
        .order_by(Turn.user_seq)
        .with_for_update()
    )
    await release_waiting(db, caller.workspace_id, session_id)
    await keep_usage_of_session(db, caller.workspace_id, session_id)
    used_files = await rows.files_of_session(db, caller.workspace_id, session_id)
    visible = visible_sessions(caller, without_agent=without_agent)
    await db.execute(delete(Session).where(visible, Session.id == session_id))
    await rows.expire_unused(db, caller.workspace_id, session_id, used_files)
    response_start = f'{{"id":"{session_id}"'.encode()
    await db.execute(
        delete(IdempotencyKey).where(
            IdempotencyKey.workspace_id == caller.workspace_id,
            func.substr(IdempotencyKey.body, 1, len(response_start)) == response_start,
        )
    )


async def fork_session(
    db: AsyncSession, caller: Caller, session_id: UUID, *, up_to_seq: int | None
) -> Session:
    """Copy a session with its messages up to `up_to_seq`, or with all of them.

    Raises `SessionNotFound`, `MessageNotFound` where the session has no message
    `up_to_seq`, and `SessionBusy` where a message that would be copied is still in progress.
    """
    original = await get_session(db, caller, session_id, for_update=True)
    if up_to_seq is not None and up_to_seq > original.last_seq:
        raise MessageNotFound(f"The session has no message {up_to_seq}.")
    last_seq = original.last_seq if up_to_seq is None else up_to_seq
    of_original = and_(
        Message.workspace_id == original.workspace_id,
        Message.session_id == original.id,
        Message.seq <= last_seq,
    )
    unfinished = select(Message.seq).where(of_original, Message.status == MessageStatus.IN_PROGRESS)
    if await db.scalar(unfinished.limit(1)) is not None:
        raise SessionBusy(
            "A turn is not finished: wait for it, or set `up_to_seq` to a message before it."
        )
    if original.agent_id is None:
        raise session_not_found()
    fork = await create_session(
        db,
        caller,
        original.agent_id,
        of_archived=True,
        title=original.title,
        metadata_=original.metadata_,
        user_id=original.user_id,
    )
    fork.last_seq = last_seq
    fork.forked_from_session_id = original.id
    fork.forked_from_seq = last_seq
    if original.summary_seq is not None and original.summary_seq <= last_seq:
        fork.summary, fork.summary_seq = original.summary, original.summary_seq
    await db.flush()
    dialect = db.get_bind().dialect.name
    largest = await db.scalar(select(func.max(row_bytes(Message, dialect))).where(of_original))
    page_size = max(1, min(_FORK_PAGE_MESSAGES, _FORK_PAGE_BYTES // max(1, largest or 0)))
    for start in range(0, last_seq, page_size):
        page = select(*(getattr(Message, name) for name in _COPIED)).where(
            of_original, Message.seq > start, Message.seq <= start + page_size
        )
        copies = [
            {
                **row,
                "workspace_id": caller.workspace_id,
                "session_id": fork.id,
                "id": new_id(),
            }
            for row in (await db.execute(page.order_by(Message.seq))).mappings()
        ]
        if copies:
            await db.execute(insert(Message), copies)
    await rows.share_files(db, caller.workspace_id, session_id, fork.id)
    return fork


_FORK_PAGE_MESSAGES, _FORK_PAGE_BYTES = 250, 4_000_000
"""What is in memory at once."""
_COPIED = (
    "seq", "role", "modality", "status", "content", "heard_content", "parts", "output",
    "created_at",
)  # fmt: skip


async def size_of_messages(
    db: AsyncSession, caller: Caller, session_id: UUID, *, up_to_seq: int | None
) -> int:
    """Return how many bytes the messages of a session take, up to `up_to_seq` if it is given."""
    size = func.sum(row_bytes(Message, db.get_bind().dialect.name))
    query = select(size).where(
        Message.workspace_id == caller.workspace_id,
        Message.session_id.in_(
            select(Session.id).where(visible_sessions(caller), Session.id == session_id)
        ),
    )
    if up_to_seq is not None:
        query = query.where(Message.seq <= up_to_seq)
    return int(await db.scalar(query) or 0)
