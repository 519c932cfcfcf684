"""Find the session that a client's name means: a script, since each turn of such clients begins so.

What the name may be is in `session_names`.
"""

from typing import NamedTuple, cast
from uuid import UUID

from sqlalchemy import Dialect, Table, and_, bindparam, false, or_, select, true, union_all
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Rows
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.security import Caller
from app.models import Agent, Session, SessionName
from app.services.crud.errors import AgentNotFound, session_not_found
from app.services.crud.slugs import SLUG_PREFIX

_NO_ID = UUID(int=0)
_MOST_SESSIONS, _MOST_AGENTS = 20, 4
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
    sessions = _SESSIONS(
        **workspace, owner_=caller.user_id or "", name_=name, session_id_=_id_of(name)
    )
    agent_id: UUID | None = None
    if agent:
        rows, agents = yield [sessions, _AGENTS(**workspace, **_names_of(agent))]
        agent_id = _chosen_agent(agents, agent)
    else:
        rows = yield from fetch_one(sessions)
    visible = [row for row in rows if _is_visible(caller, row)]
    for session_id, of_agent, _, is_named in visible:
        if agent_id in {None, of_agent}:
            return FoundSession(session_id, of_agent)
        if not is_named:
            raise session_not_found()
    if caller.session_id is not None:
        raise session_not_found()
    return FoundSession(None, agent_id or (yield from _only_agent(caller.workspace_id)))


def _is_visible(caller: Caller, row: tuple[UUID, UUID, str | None, bool]) -> bool:
    session_id, _, user_id, is_named = row
    if caller.session_id is not None:  # which has no names
        return not is_named and session_id == caller.session_id
    return caller.user_id in {None, user_id}


def _chosen_agent(rows: Rows, agent: UUID | str) -> UUID:
    """Return the one agent that is meant; a slug counts more than a name."""
    slug = agent.removeprefix(SLUG_PREFIX) if isinstance(agent, str) else None
    is_slug = isinstance(agent, str) and agent.startswith(SLUG_PREFIX)
    chosen = [row for row in rows if is_slug and row[1] == slug] or rows
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


def _sessions_stmt(_dialect: Dialect) -> ClauseElement:
    """Return the named sessions, the newest first, and then the one with the id."""
    columns = (_sessions.c.id, _sessions.c.agent_id, _sessions.c.user_id)
    of_name = and_(
        _names.c.workspace_id == _sessions.c.workspace_id, _names.c.session_id == _sessions.c.id
    )
    named = (
        select(*columns, true().label("is_named"))
        .join_from(_names, _sessions, of_name)
        .where(
            _names.c.workspace_id == bindparam("workspace_id_"),
            _names.c.owner == bindparam("owner_"),
            _names.c.name == bindparam("name_"),
        )
    )
    by_id = select(*columns, false().label("is_named")).where(
        _sessions.c.workspace_id == bindparam("workspace_id_"),
        _sessions.c.id == bindparam("session_id_"),
    )
    found = union_all(named, by_id).subquery()
    return select(found).order_by(found.c.is_named.desc(), found.c.id.desc()).limit(_MOST_SESSIONS)


def _agents_stmt(_dialect: Dialect) -> ClauseElement:
    is_meant = or_(
        _agents.c.id == bindparam("agent_id_"),
        _agents.c.slug == bindparam("slug_"),
        _agents.c.name == bindparam("agent_name_"),
    )
    return (
        select(_agents.c.id, _agents.c.slug)
        .where(
            _agents.c.workspace_id == bindparam("workspace_id_"),
            _agents.c.archived_at.is_(None),
            is_meant,
        )
        .limit(_MOST_AGENTS)
    )


def _any_agents_stmt(_dialect: Dialect) -> ClauseElement:
    in_workspace = _agents.c.workspace_id == bindparam("workspace_id_")
    return select(_agents.c.id).where(in_workspace, _agents.c.archived_at.is_(None)).limit(2)


_SESSIONS = PreparedStatement(_sessions_stmt)
_AGENTS = PreparedStatement(_agents_stmt)
_ANY_AGENTS = PreparedStatement(_any_agents_stmt)
