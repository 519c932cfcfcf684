"""Find the session that a client's name means: a script, since each turn of such clients begins so.

What the name may be is in `session_names`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

from sqlalchemy import (
    Dialect,
    Integer,
    Table,
    and_,
    bindparam,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.selectable import SelectBase

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.security import Caller
from app.models import Agent, Session, SessionName
from app.services.crud.errors import AgentNotFound, session_not_found
from app.services.crud.slugs import SLUG_PREFIX

_NO_ID = UUID(int=0)
_MOST_ROWS = 60
_AGENT, _NAMED, _BY_ID = 0, 1, 2
"""What a row of the lookup is, in the order of the rows."""
_sessions = cast("Table", Session.__table__)
_names = cast("Table", SessionName.__table__)
_agents = cast("Table", Agent.__table__)


class FoundSession(NamedTuple):
    """The session that a name means, if there is one, and the agent that answers in it."""

    session_id: UUID | None
    agent_id: UUID


def find_named_session(
    caller: Caller, name: str, agent: UUID | str | None
) -> TransactionScript[FoundSession]:
    """Return the session that the name means, which may be a session's id.

    `agent` is an id, a slug behind `SLUG_PREFIX`, or a name; without it the agent is the session's,
    or the only one of the workspace. Raises `AgentNotFound`, and `SessionNotFound` where a session
    token names another session, or a session is another agent's.
    """
    workspace = {"workspace_id_": caller.workspace_id}
    given = {"owner_": caller.user_id or "", "name_": name, "session_id_": _id_of(name)}
    agent_id: UUID | None = None
    if agent:
        found = yield from fetch_one(_WITH_AGENTS(**workspace, **given, **_names_of(agent)))
        agent_id = _chosen_agent([row for row in found if row[3] == _AGENT], agent)
    else:
        found = yield from fetch_one(_SESSIONS(**workspace, **given))
    for session_id, of_agent, user_id, kind in found:
        if kind == _AGENT or not _is_visible(caller, session_id, user_id, kind):
            continue
        if agent_id in {None, of_agent}:
            return FoundSession(session_id, of_agent)
        if kind == _BY_ID:
            raise session_not_found()
    if caller.session_id is not None:
        raise session_not_found()
    return FoundSession(None, agent_id or (yield from _only_agent(caller.workspace_id)))


def _is_visible(caller: Caller, session_id: UUID, user_id: str | None, kind: int) -> bool:
    if caller.session_id is not None:  # which has no names
        return kind == _BY_ID and session_id == caller.session_id
    return caller.user_id in {None, user_id}


def _chosen_agent(rows: Sequence[tuple[Any, ...]], agent: UUID | str) -> UUID:
    """Return the one agent that is meant; a slug counts more than a name."""
    slug = agent.removeprefix(SLUG_PREFIX) if isinstance(agent, str) else None
    is_slug = isinstance(agent, str) and agent.startswith(SLUG_PREFIX)
    chosen = [row for row in rows if is_slug and row[2] == slug] or rows
    if len(chosen) != 1:
        raise AgentNotFound("No agent with this id or name exists in this workspace.")
    return chosen[0][0]


def _only_agent(workspace_id: UUID) -> TransactionScript[UUID]:
    rows = yield from fetch_one(_ANY_AGENTS(workspace_id_=workspace_id))
    if len(rows) != 1:
        raise AgentNotFound("Say which agent answers: name it in the request.")
    return rows[0][0]


def _id_of(name: str) -> UUID:
    try:
        return UUID(name)
    except ValueError:
        return _NO_ID


def _names_of(agent: UUID | str) -> dict[str, object]:
    if isinstance(agent, UUID):
        return {"agent_id_": agent, "slug_": "", "agent_name_": ""}
    slug = agent.removeprefix(SLUG_PREFIX) if agent.startswith(SLUG_PREFIX) else ""
    return {"agent_id_": _NO_ID, "slug_": slug, "agent_name_": agent}


def _sessions_of_name() -> list[SelectBase]:
    """Return the queries for the named sessions, and for the one with the id."""
    columns = (_sessions.c.id, _sessions.c.agent_id, _sessions.c.user_id)
    of_name = and_(
        _names.c.workspace_id == _sessions.c.workspace_id, _names.c.session_id == _sessions.c.id
    )
    named = (
        select(*columns, literal_column(str(_NAMED), Integer).label("kind"))
        .join_from(_names, _sessions, of_name)
        .where(
            _names.c.workspace_id == bindparam("workspace_id_"),
            _names.c.owner == bindparam("owner_"),
            _names.c.name == bindparam("name_"),
        )
    )
    by_id = select(*columns, literal_column(str(_BY_ID), Integer).label("kind")).where(
        _sessions.c.workspace_id == bindparam("workspace_id_"),
        _sessions.c.id == bindparam("session_id_"),
    )
    return [named, by_id]


def _agents_of_name() -> SelectBase:
    """Return the query for the agents that may be meant; their slug is in the third column."""
    kind = literal_column(str(_AGENT), Integer).label("kind")
    return select(_agents.c.id, _agents.c.id.label("agent_id"), _agents.c.slug, kind).where(
        _agents.c.workspace_id == bindparam("workspace_id_"),
        _agents.c.archived_at.is_(None),
        or_(
            _agents.c.id == bindparam("agent_id_"),
            _agents.c.slug == bindparam("slug_"),
            _agents.c.name == bindparam("agent_name_"),
        ),
    )


def _ordered(queries: Sequence[SelectBase]) -> ClauseElement:
    """Return all that the queries find: agents, named sessions, the newest first, one by its id."""
    found = union_all(*queries).subquery()
    return select(found).order_by(found.c.kind, found.c.id.desc()).limit(_MOST_ROWS)


def _any_agents_stmt(_dialect: Dialect) -> ClauseElement:
    in_workspace = _agents.c.workspace_id == bindparam("workspace_id_")
    query = select(_agents.c.id).where(in_workspace, _agents.c.archived_at.is_(None))
    return query.order_by(_agents.c.id).limit(2)  # so that the planner uses the primary key


_SESSIONS = PreparedStatement(lambda _: _ordered(_sessions_of_name()))
_WITH_AGENTS = PreparedStatement(lambda _: _ordered([_agents_of_name(), *_sessions_of_name()]))
_ANY_AGENTS = PreparedStatement(_any_agents_stmt)
