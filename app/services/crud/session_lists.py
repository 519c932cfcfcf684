"""List and search sessions, with their first words and with what a search has found.

Each function works in the caller's transaction `db` and never commits. Sessions of another
workspace or of another end user are treated as absent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    exists,
    func,
    literal,
    select,
    text,
    tuple_,
    type_coerce,
)
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import LISTED, Message, Role, Session
from app.services.crud.search import has_words, says, words_of
from app.services.crud.sessions import visible_sessions

_PREVIEW_CHARACTERS = 160
_BEFORE_MATCH = 40
MOST_COUNTED = 10_000
"""Where counting sessions stops."""


class SessionOrder(StrEnum):
    """In which order sessions are listed, the newest first."""

    CREATED = "created"
    UPDATED = "updated"


class ListPosition(NamedTuple):
    """The place of a session in a list; `moment` is that of its last change in that order."""

    session_id: UUID
    moment: datetime | None = None


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions are listed; `None` is any. `metadata` are members that theirs must have."""

    agent_id: UUID | None = None
    user_id: str | None = None
    search: str | None = None
    """Words that all occur in the title or in one message."""
    updated_after: datetime | None = None
    metadata: Mapping[str, Any] | None = None
    with_hidden: bool = False
    """Whether also those are listed that hold responses without a conversation."""


class SearchMatch(NamedTuple):
    """The first message of a session that has all words of a search, and what is around one."""

    seq: int
    snippet: str


async def list_sessions(  # noqa: PLR0913  # keyword arguments all
    db: AsyncSession,
    caller: Caller,
    session_filter: SessionFilter,
    *,
    order: SessionOrder = SessionOrder.CREATED,
    after: ListPosition | None = None,
    limit: int,
) -> Sequence[Session]:
    """Return up to `limit` sessions that stand after `after` in the list.

    Raises `SearchInvalid`.
    """
    query = _filtered(select(Session), db, caller, session_filter)
    if order is SessionOrder.CREATED:
        if after:
            query = query.where(Session.id < after.session_id)
        query = query.order_by(Session.id.desc())
    else:  # no index: each turn would have to change it
        if after:
            place = tuple_(literal(after.moment, Session.updated_at.type), after.session_id)
            query = query.where(tuple_(Session.updated_at, Session.id) < place)
        query = query.order_by(Session.updated_at.desc(), Session.id.desc())
    return (await db.scalars(query.limit(limit))).all()


async def count_sessions(db: AsyncSession, caller: Caller, session_filter: SessionFilter) -> int:
    """Return how many sessions there are, at most `MOST_COUNTED`. Raises `SearchInvalid`."""
    found = _filtered(select(literal(1)).select_from(Session), db, caller, session_filter)
    counted = select(func.count()).select_from(found.limit(MOST_COUNTED).subquery())
    return await db.scalar(counted) or 0


async def first_words(
    db: AsyncSession, workspace_id: UUID, session_ids: Sequence[UUID]
) -> Mapping[UUID, str]:
    """Return how the first message of each session begins; a session without one is left out."""
    beginning = func.substr(Message.content, 1, _PREVIEW_CHARACTERS)
    query = select(Message.session_id, beginning).where(
        Message.workspace_id == workspace_id, Message.session_id.in_(session_ids), Message.seq == 1
    )
    return {session_id: " ".join(words.split()) for session_id, words in await db.execute(query)}


async def find_matches(
    db: AsyncSession, workspace_id: UUID, session_ids: Sequence[UUID], search: str
) -> Mapping[UUID, SearchMatch]:
    """Return the first message of each session that has all words of `search`.

    Sessions that have the words in their title alone are left out. Raises `SearchInvalid`.
    """
    on_postgres = db.get_bind().dialect.name == "postgresql"
    words = words_of(search)
    in_sessions = and_(
        Message.workspace_id == workspace_id,
        Message.session_id.in_(session_ids),
        Message.role != Role.SYSTEM,
    )
    has_them = has_words(words, Message.content.expression, on_postgres=on_postgres)
    first = (
        select(Message.session_id, func.min(Message.seq).label("seq"))
        .where(in_sessions, has_them)
        .group_by(Message.session_id)
        .subquery()
    )
    place_of = func.strpos if on_postgres else func.instr
    start = place_of(func.lower(Message.content), words[0]) - _BEFORE_MATCH
    greatest = func.greatest if on_postgres else func.max
    snippet = func.substr(Message.content, greatest(start, 1), _PREVIEW_CHARACTERS)
    query = select(Message.session_id, Message.seq, snippet).where(
        Message.workspace_id == workspace_id,
        Message.session_id == first.c.session_id,
        Message.seq == first.c.seq,
    )
    return {
        session_id: SearchMatch(seq, " ".join(text.split()))
        for session_id, seq, text in await db.execute(query)
    }


def _filtered(
    query: Select[Any], db: AsyncSession, caller: Caller, session_filter: SessionFilter
) -> Select[Any]:
    dialect = db.get_bind().dialect.name
    query = query.where(visible_sessions(caller))
    if not session_filter.with_hidden:
        query = query.where(text(LISTED))
    if session_filter.agent_id:
        query = query.where(Session.agent_id == session_filter.agent_id)
    if session_filter.user_id is not None:
        query = query.where(Session.user_id == session_filter.user_id)
    if session_filter.updated_after is not None:
        query = query.where(Session.updated_at > session_filter.updated_after)
    if session_filter.metadata:
        query = query.where(*_has_members(session_filter.metadata, dialect))
    if session_filter.search is None:
        return query
    return query.where(
        says(
            session_filter.search,
            caller.workspace_id,
            on_postgres=dialect == "postgresql",
            # Else the time of the search would tell what sessions of others contain.
            each_session=session_filter.user_id is not None or not caller.sees_all_sessions,
        )
    )


def _has_members(metadata: Mapping[str, Any], dialect: str) -> list[ColumnElement[bool]]:
    if dialect == "postgresql":
        contains = Session.metadata_.op("@>", is_comparison=True)
        return [contains(type_coerce(dict(metadata), Session.metadata_.type))]
    conditions: list[ColumnElement[bool]] = []
    for name, value in metadata.items():
        member = func.json_each(Session.metadata_).table_valued("key", "value", "type")
        condition = and_(member.c.key == name, member.c.type.in_(_json_types(value)))
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            condition = and_(condition, member.c.value == value)
        conditions.append(exists(select(1).select_from(member).where(condition)))
    return conditions


def _json_types(value: str | float | None) -> tuple[str, ...]:
    """Return what SQLite calls the types of JSON values that can equal `value`."""
    match value:
        case None:
            return ("null",)
        case bool():
            return (str(value).lower(),)
        case str():
            return ("text",)
        case _:
            return ("integer", "real")
