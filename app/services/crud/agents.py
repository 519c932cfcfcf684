"""Create, read, update and archive agents; list and restore their versions.

Each function works in the caller's transaction `db` and never commits. Rows of another workspace
are treated as absent.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import delete, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import (
    PERSONA_FIELDS,
    Agent,
    AgentMcpServer,
    AgentTool,
    AgentVersion,
    ToolVersion,
    utc_now,
)
from app.services.crud.errors import (
    AgentArchived,
    AgentNotFound,
    VersionChanged,
    VersionNotFound,
)
from app.services.crud.slugs import SLUG_PREFIX, free_slug, unused_slug


class PersonaChanges(TypedDict, total=False):
    """The settings of an agent that a client may change."""

    name: str
    system_prompt: str
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    context_tokens: int | None
    voice: str | None
    language: str | None
    tools: list[dict[str, Any]] | None
    """Pins; `None` for no tools."""
    tool_policy: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    output_speak: str | None
    vision: bool | None


async def create_agent(
    db: AsyncSession, workspace_id: UUID, **persona: Unpack[PersonaChanges]
) -> Agent:
    """Insert an agent with its version 1; return it with its id set."""
    agent = await _insert_agent(db, workspace_id, persona)
    await _record_version(db, agent)
    if agent.tools:
        await _link_tools(db, agent)
    return agent


async def _insert_agent(db: AsyncSession, workspace_id: UUID, persona: PersonaChanges) -> Agent:
    name = persona.get("name", "")
    try:
        async with db.begin_nested():
            return await _insert(db, workspace_id, persona, await free_slug(db, workspace_id, name))
    except IntegrityError:  # another transaction took the slug meanwhile, and may take the next
        return await _insert(db, workspace_id, persona, unused_slug(name))


async def _insert(
    db: AsyncSession, workspace_id: UUID, persona: PersonaChanges, slug: str
) -> Agent:
    now = utc_now()
    agent = Agent(
        workspace_id=workspace_id,
        version=1,
        slug=slug,
        created_at=now,
        updated_at=now,
        **persona,
    )
    db.add(agent)
    await db.flush()
    return agent


async def list_agents(
    db: AsyncSession,
    workspace_id: UUID,
    *,
    archived: bool,
    before_id: UUID | None,
    limit: int,
) -> Sequence[Agent]:
    """Return up to `limit` agents older than `before_id`, newest first."""
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


async def find_agent(db: AsyncSession, workspace_id: UUID, agent: UUID | str) -> Agent:
    """Return an agent by its id, its slug behind `SLUG_PREFIX`, or its name.

    Archived ones are left out. Raises `AgentNotFound`, also where several have the name.
    """
    conditions = [Agent.name == agent]
    if isinstance(agent, UUID):
        conditions = [Agent.id == agent]
    elif agent.startswith(SLUG_PREFIX):
        conditions = [Agent.slug == agent.removeprefix(SLUG_PREFIX), *conditions]
    for condition in conditions:
        query = select(Agent).where(
            Agent.workspace_id == workspace_id, Agent.archived_at.is_(None), condition
        )
        found = (await db.scalars(query.limit(2))).all()
        if len(found) == 1:
            return found[0]
    raise AgentNotFound("No agent with this id or name exists in this workspace.")


async def get_agent(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, *, for_update: bool = False
) -> Agent:
    """Return one agent, archived or not. Raises `AgentNotFound`."""
    agent = await db.get(Agent, (workspace_id, agent_id), with_for_update=for_update)
    if agent is None:
        raise AgentNotFound("No agent with this id exists in this workspace.")
    return agent


async def update_agent(
    db: AsyncSession,
    workspace_id: UUID,
    agent_id: UUID,
    *,
    seen_version: int | None = None,
    **changes: Unpack[PersonaChanges],
) -> Agent:
    """Set the given columns and store the result as a new version.

    No version is created where no value changes. Raises `AgentNotFound`, `AgentArchived`, or
    `VersionChanged` where the version is not `seen_version`.
    """
    agent = await get_agent(db, workspace_id, agent_id, for_update=True)
    if seen_version is not None and agent.version != seen_version:
        raise VersionChanged(
            f"The agent is at version {agent.version}: read it again before you change it."
        )
    if agent.archived_at:
        raise AgentArchived(
            "The agent is archived and cannot be changed: unarchive it, or create a new agent."
        )
    if all(getattr(agent, column) == value for column, value in changes.items()):
        return agent
    for column, value in changes.items():
        setattr(agent, column, value)
    agent.version += 1
    agent.updated_at = utc_now()
    await _record_version(db, agent)
    if "tools" in changes:
        await _link_tools(db, agent)
    return agent


async def archive_agent(db: AsyncSession, workspace_id: UUID, agent_id: UUID) -> None:
    """Archive the agent: its sessions stay readable, but accept no new messages.

    Archiving it again changes nothing. Raises `AgentNotFound`.
    """
    agent = await get_agent(db, workspace_id, agent_id, for_update=True)
    agent.archived_at = agent.archived_at or utc_now()


async def unarchive_agent(db: AsyncSession, workspace_id: UUID, agent_id: UUID) -> Agent:
    """Undo `archive_agent`; an agent that is not archived does not change.

    Raises `AgentNotFound`.
    """
    agent = await get_agent(db, workspace_id, agent_id, for_update=True)
    agent.archived_at = None
    return agent


async def list_versions(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, *, before: int | None, limit: int
) -> Sequence[AgentVersion]:
    """Return up to `limit` versions below `before`, newest first. Raises `AgentNotFound`."""
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


async def get_version(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, version: int
) -> AgentVersion:
    """Return one version of an agent. Raises `AgentNotFound` or `VersionNotFound`."""
    await get_agent(db, workspace_id, agent_id)
    found = await db.get(AgentVersion, (workspace_id, agent_id, version))
    if found is None:
        raise VersionNotFound(f"The agent has no version {version}.")
    return found


async def restore_version(
    db: AsyncSession, workspace_id: UUID, agent_id: UUID, version: int
) -> Agent:
    """Restore the settings of `version` and store them as a new version.

    Raises `AgentNotFound`, `AgentArchived` or `VersionNotFound`.
    """
    old = await get_version(db, workspace_id, agent_id, version)
    changes: Any = {field: getattr(old, field) for field in PERSONA_FIELDS}
    return await update_agent(db, workspace_id, agent_id, **changes)


def flat_pins(pins: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the exact versions of tools in an agent's pins, those of MCP servers among them."""
    flat: list[dict[str, Any]] = []
    for pin in pins or ():
        if "mcp_server_id" in pin:
            flat += [{**each, "approval": pin["approval"]} for each in pin["tools"]]
        else:
            flat.append(dict(pin))
    return flat


async def client_tool_names(db: AsyncSession, agent: Agent) -> set[str]:
    """Return the names of the agent's tools that its clients run."""
    pins = {(UUID(pin["tool_id"]), pin["version"]) for pin in flat_pins(agent.tools)}
    query = select(ToolVersion).where(
        ToolVersion.workspace_id == agent.workspace_id,
        ToolVersion.tool_id.in_({tool_id for tool_id, _ in pins}),
    )
    return {
        tool.definition["name"]
        for tool in (await db.scalars(query))
        if (tool.tool_id, tool.version) in pins and tool.definition["kind"] == "client"
    }


async def _link_tools(db: AsyncSession, agent: Agent) -> None:
    """Store which tools and MCP servers the newest version has, so that they find their agents."""
    await db.execute(
        delete(AgentTool).where(
            AgentTool.workspace_id == agent.workspace_id, AgentTool.agent_id == agent.id
        )
    )
    await db.execute(
        delete(AgentMcpServer).where(
            AgentMcpServer.workspace_id == agent.workspace_id, AgentMcpServer.agent_id == agent.id
        )
    )
    mine = {"workspace_id": agent.workspace_id, "agent_id": agent.id}
    db.add_all(AgentTool(**mine, tool_id=UUID(pin["tool_id"])) for pin in flat_pins(agent.tools))
    db.add_all(
        AgentMcpServer(**mine, mcp_server_id=UUID(pin["mcp_server_id"]))
        for pin in agent.tools or ()
        if "mcp_server_id" in pin
    )
    await db.flush()


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
