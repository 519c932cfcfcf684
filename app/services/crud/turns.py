"""Read stored turns; only the turn engine writes them.

Each function works in the caller's transaction `db` and never commits. Rows of another workspace
or of another end user are treated as absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Select, and_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import (
    UNSETTLED,
    UNSUCCESSFUL,
    Agent,
    Message,
    Session,
    Turn,
    TurnStatus,
)
from app.services.crud.errors import (
    ResponseNotFound,
    SessionBusy,
    turn_not_found,
)
from app.services.crud.sessions import visible_sessions
from app.services.crud.slugs import SLUG_PREFIX

DELETED = "is_deleted"
"""The member of a turn's `request` that hides it from clients of OpenAI's API."""

_CLOCK_TOLERANCE = timedelta(minutes=5)
"""An id and `created_at` are made apart, from one clock."""
_UUID7_LARGEST_MS = 2**48 - 1
_UNSUCCESSFUL_STATUSES = (TurnStatus.FAILED, TurnStatus.CANCELLED)


@dataclass(frozen=True, slots=True)
class TurnFilter:
    """Which turns are listed; `None` is any. A turn of the moment `created_before` is left out."""

    status: TurnStatus | None = None
    session_id: UUID | None = None
    agent_id: UUID | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


async def find_turns(
    db: AsyncSession, caller: Caller, turn_filter: TurnFilter, *, before_id: UUID | None, limit: int
) -> Sequence[Turn]:
    """Return up to `limit` of the caller's turns older than `before_id`, the newest first."""
    query = select(Turn).where(Turn.workspace_id == caller.workspace_id)
    if not caller.sees_all_sessions:
        visible = select(Session.id).where(visible_sessions(caller))
        query = query.where(Turn.session_id.in_(visible))
    if caller.session_id:
        query = query.where(Turn.session_id == caller.session_id)
    if turn_filter.session_id:
        query = query.where(Turn.session_id == turn_filter.session_id)
    if turn_filter.agent_id:
        query = query.where(Turn.agent_id == turn_filter.agent_id)
    if turn_filter.status:
        query = _with_status(query, turn_filter.status)
    # A UUIDv7 begins with its time, so that the time leads to a place in the index of ids.
    if turn_filter.created_from:
        first_id = _lowest_id(turn_filter.created_from - _CLOCK_TOLERANCE)
        query = query.where(Turn.id >= first_id, Turn.created_at >= turn_filter.created_from)
    if turn_filter.created_before:
        end_id = _lowest_id(turn_filter.created_before + _CLOCK_TOLERANCE)
        query = query.where(Turn.id < end_id, Turn.created_at < turn_filter.created_before)
    if before_id:
        query = query.where(Turn.id < before_id)
    return (await db.scalars(query.order_by(Turn.id.desc()).limit(limit))).all()


def _with_status(query: Select[Turn], status: TurnStatus) -> Select[Turn]:
    """Keep turns of one status; literal SQL lets the planner see that a partial index applies."""
    query = query.where(Turn.status == status)
    if status in _UNSUCCESSFUL_STATUSES:
        return query.where(text(UNSUCCESSFUL))
    return query if status is TurnStatus.COMPLETED else query.where(text(UNSETTLED))


def _lowest_id(moment: datetime) -> UUID:
    milliseconds = min(max(0, int(moment.timestamp() * 1000)), _UUID7_LARGEST_MS)
    return UUID(int=milliseconds << 80)


async def list_turns(
    db: AsyncSession, session: Session, *, after_seq: int = 0, limit: int
) -> Sequence[Turn]:
    """Return up to `limit` turns of a session whose message is above `after_seq`, oldest first."""
    return (
        await db.scalars(
            select(Turn)
            .where(
                Turn.workspace_id == session.workspace_id,
                Turn.session_id == session.id,
                Turn.user_seq > after_seq,
            )
            .order_by(Turn.user_seq)
            .limit(limit)
        )
    ).all()


async def get_turn(db: AsyncSession, caller: Caller, turn_id: UUID) -> tuple[Turn, Message]:
    """Return one turn and its assistant message. Raises `TurnNotFound`."""
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
        raise turn_not_found()
    turn, message = row
    return turn, message


class ResponseTurn(NamedTuple):
    """A turn as a client of OpenAI's API sees it, with its answer."""

    turn: Turn
    message: Message
    session: Session
    agent: Agent | None

    @property
    def model(self) -> str:
        """The name of its agent as a model."""
        if self.agent is None:
            return ""
        return f"{SLUG_PREFIX}{self.agent.slug}" if self.agent.slug else str(self.agent.id)


async def get_response_turn(db: AsyncSession, caller: Caller, turn_id: UUID) -> ResponseTurn:
    """Return a turn that was not deleted as a response. Raises `ResponseNotFound`."""
    query = (
        select(Turn, Message, Session, Agent)
        .join(
            Message,
            and_(Message.workspace_id == Turn.workspace_id, Message.id == Turn.message_id),
        )
        .join(
            Session,
            and_(Session.workspace_id == Turn.workspace_id, Session.id == Turn.session_id),
        )
        .outerjoin(Agent, and_(Agent.workspace_id == Turn.workspace_id, Agent.id == Turn.agent_id))
        .where(Turn.workspace_id == caller.workspace_id, Turn.id == turn_id)
        .where(visible_sessions(caller))
    )
    row = (await db.execute(query)).one_or_none()
    if row is None or (row[0].request or {}).get(DELETED):
        raise ResponseNotFound("There is no response with this id.")
    return ResponseTurn(*row)


async def delete_response(db: AsyncSession, caller: Caller, turn_id: UUID) -> UUID | None:
    """Let nobody find a turn as a response any more; its receipt stays.

    Returns the hidden session that has no other response, which the caller deletes. Raises
    `ResponseNotFound`, and `SessionBusy` where the turn is not finished.
    """
    found = await get_response_turn(db, caller, turn_id)
    if found.turn.ended_at is None:
        raise SessionBusy("The response is not finished: cancel it before it is deleted.")
    found.turn.request = {**(found.turn.request or {}), DELETED: True}
    await db.flush()
    if not found.session.is_hidden:
        return None
    requests = await db.scalars(
        select(Turn.request).where(
            Turn.workspace_id == caller.workspace_id, Turn.session_id == found.session.id
        )
    )
    return (
        None
        if any(not (request or {}).get(DELETED) for request in requests)
        else (found.session.id)
    )
