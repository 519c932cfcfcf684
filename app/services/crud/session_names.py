"""Give sessions the names that clients of other APIs have for them, and look at what they mean.

Each function works in the caller's transaction `db` and never commits. End users have names of
their own; keys of a workspace share theirs. A session token has none.
"""

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import Select, and_, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import UNSETTLED, Message, Role, Session, SessionName, Turn
from app.services.crud.errors import MessageNotFound
from app.services.crud.sessions import create_session, visible_sessions

_MOST_FORKS = 200
"""How many forks of forks are followed to the session of a message."""
_MOST_UNANSWERED = 50


async def create_named_session(
    db: AsyncSession, caller: Caller, name: str, agent_id: UUID
) -> Session:
    """Insert a session and its name; return the one that another request has made meanwhile.

    Raises `AgentNotFound` and `AgentArchived`.
    """
    try:
        async with db.begin_nested():
            session = await create_session(db, caller, agent_id, metadata_={})
            db.add(_name(caller, name, session))
            await db.flush()
            return session
    except IntegrityError:
        query = _named(caller, name).where(SessionName.agent_id == agent_id)
        return (await db.scalars(query)).one()


async def rename_to(db: AsyncSession, caller: Caller, name: str, session: Session) -> None:
    """Let the name mean this session from now on."""
    await db.merge(_name(caller, name, session))
    await db.flush()


async def unsettled_turns_of_name(db: AsyncSession, caller: Caller, name: str) -> Sequence[UUID]:
    """Return the turns that run, wait or are queued in the named sessions, in their order."""
    named = _named(caller, name).with_only_columns(Session.id)
    sessions = set(await db.scalars(named)) if caller.session_id is None else set[UUID]()
    if session := await _session_of_id(db, caller, name):
        sessions.add(session.id)
    return await unsettled_turns_of_sessions(db, caller.workspace_id, sessions) if sessions else ()


async def unsettled_turns_of_sessions(
    db: AsyncSession, workspace_id: UUID, session_ids: Iterable[UUID], after_seq: int = 0
) -> Sequence[UUID]:
    """Return the turns that have not ended and whose message is above `after_seq`."""
    unsettled = (
        select(Turn.id)
        .where(
            Turn.workspace_id == workspace_id,
            Turn.session_id.in_(session_ids),
            Turn.user_seq > after_seq,
            text(UNSETTLED),
        )
        .order_by(Turn.user_seq)
    )
    return (await db.scalars(unsettled)).all()


async def place_of_message(
    db: AsyncSession, caller: Caller, session: Session, message_id: UUID
) -> int:
    """Return the `seq` of a message in the session, also of one that a fork has copied into it.

    A fork keeps numbers, and gives new ids. Raises `MessageNotFound`.
    """
    query = select(Message.session_id, Message.seq).where(
        Message.workspace_id == caller.workspace_id, Message.id == message_id
    )
    found = (await db.execute(query)).one_or_none()
    current: UUID | None = session.id
    most = session.last_seq
    for _ in range(_MOST_FORKS):
        if found is None or current is None or found.seq > most:
            break
        if found.session_id == current:
            return found.seq
        origin = select(Session.forked_from_session_id, Session.forked_from_seq).where(
            visible_sessions(caller), Session.id == current
        )
        row = (await db.execute(origin)).one_or_none()
        current, most = (row[0], min(most, row[1] or 0)) if row else (None, 0)
    raise MessageNotFound("The conversation has no message with this id.")


async def texts_after(db: AsyncSession, session: Session, seq: int) -> Sequence[str]:
    """Return the texts of the user messages behind a message, oldest first."""
    query = select(Message.content).where(
        Message.workspace_id == session.workspace_id,
        Message.session_id == session.id,
        Message.seq > seq,
        Message.role == Role.USER,
    )
    return (await db.scalars(query.order_by(Message.seq).limit(_MOST_UNANSWERED))).all()


def _named(caller: Caller, name: str) -> Select[Session]:
    of_name = and_(
        SessionName.workspace_id == Session.workspace_id, SessionName.session_id == Session.id
    )
    return (
        select(Session)
        .join(SessionName, of_name)
        .where(
            SessionName.workspace_id == caller.workspace_id,
            SessionName.owner == (caller.user_id or ""),
            SessionName.name == name,
            visible_sessions(caller),
        )
    )


def _name(caller: Caller, name: str, session: Session) -> SessionName:
    return SessionName(
        workspace_id=caller.workspace_id,
        owner=caller.user_id or "",
        name=name,
        agent_id=session.agent_id,
        session_id=session.id,
    )


async def _session_of_id(db: AsyncSession, caller: Caller, name: str) -> Session | None:
    try:
        session_id = UUID(name)
    except ValueError:
        return None
    query = select(Session).where(visible_sessions(caller), Session.id == session_id)
    return await db.scalar(query)
