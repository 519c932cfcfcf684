"""Find the agent that a client names."""

from uuid import UUID

from sqlalchemy import Dialect, bindparam, select
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.services.crud import SLUG_PREFIX, AgentArchived, AgentNotFound
from app.services.turns.storage.tables import agents


def find_agent(workspace_id: UUID, agent: UUID | str | None) -> TransactionScript[tuple[UUID, int]]:
    """Return the id and the newest version of an agent that is not archived."""
    if isinstance(agent, UUID):
        rows = yield from fetch_one(_BY_ID(workspace_id_=workspace_id, agent_id_=agent))
    else:
        name = agent or ""
        rows = ()
        if name.startswith(SLUG_PREFIX):
            slug = name.removeprefix(SLUG_PREFIX)
            rows = yield from fetch_one(_BY_SLUG(workspace_id_=workspace_id, slug_=slug))
        if not rows:
            rows = yield from fetch_one(_BY_NAME(workspace_id_=workspace_id, name_=name))
    current = [row for row in rows if row[2] is None]
    if len(current) == 1:
        return current[0][0], current[0][1]
    if rows and not current:
        raise AgentArchived("The agent is archived: it answers no new messages.")
    if current:
        raise AgentNotFound("Several agents have this name: use the id of one.")
    raise AgentNotFound("No agent with this id or name exists in this workspace.")


def _agent_stmt(column: str, parameter: str) -> PreparedStatement:
    def build(_dialect: Dialect) -> ClauseElement:
        return (
            select(agents.c.id, agents.c.version, agents.c.archived_at)
            .where(
                agents.c.workspace_id == bindparam("workspace_id_"),
                agents.c[column] == bindparam(parameter),
            )
            .limit(_MOST_NAMESAKES)
        )

    return PreparedStatement(build)


_MOST_NAMESAKES = 50
_BY_ID = _agent_stmt("id", "agent_id_")
_BY_SLUG = _agent_stmt("slug", "slug_")
_BY_NAME = _agent_stmt("name", "name_")
