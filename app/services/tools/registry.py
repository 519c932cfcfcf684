"""Create, list, change and archive tools; each change is a version that never changes again.

Each function works in the caller's transaction `db` and never commits. Rows of another workspace
are treated as absent.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.value_objects import value_object
from app.models import Agent, AgentTool, Tool, ToolVersion, new_id, utc_now
from app.services import crud
from app.services.outbound_port import Outbound
from app.services.tools import pinning, secrets
from app.services.tools.definitions import Definition, check, shown_sha256
from app.services.tools.errors import (
    ToolArchived,
    ToolInUse,
    ToolInvalid,
    ToolNameTaken,
    ToolNotFound,
)
from app.services.tools.key_ring import KeyRing
from app.services.usage.storage import row_bytes

MOST_TOOLS = 2000
"""Of a workspace."""
_OF_MCP_SERVERS = frozenset(
    ("name", "description", "kind", "parameters", "output_schema", "http", "mcp")
)


@value_object(frozen=True, slots=True)
class StoredTool:
    """A version of a tool with what is common to all of them."""

    id: UUID
    version: int
    definition: Definition
    created_at: datetime
    """Of this version; with `updated_at`, of the tool."""
    updated_at: datetime | None = None
    archived_at: datetime | None = None


async def create_tool(
    db: AsyncSession, keys: KeyRing, outbound: Outbound, workspace_id: UUID, definition: Definition
) -> tuple[StoredTool, str]:
    """Insert a tool with its version 1; return it and the secret that signs its requests.

    Raises what `check` and `require_bound_secrets` raise, `ToolNameTaken` and
    `SecretsKeyMissing`.
    """
    names = await require_creatable(db, outbound, workspace_id, definition)
    tool = await insert_tool(db, workspace_id, definition, names)
    signing_secret = await secrets.make_signing_secret(db, keys, workspace_id, tool.id)
    return _stored(tool, definition), signing_secret


async def insert_tool(
    db: AsyncSession,
    workspace_id: UUID,
    definition: Definition,
    secret_names: Sequence[str] = (),
    mcp_server_id: UUID | None = None,
) -> Tool:
    """Insert a tool with its version 1. Raises `ToolNameTaken`, and `ToolInvalid` for too many."""
    counted = select(func.count()).select_from(Tool).where(Tool.workspace_id == workspace_id)
    if (await db.scalar(counted) or 0) >= MOST_TOOLS:
        raise ToolInvalid(f"A workspace has at most {MOST_TOOLS} tools, with those archived.")
    now = utc_now()
    tool = Tool(
        workspace_id=workspace_id,
        id=new_id(),
        name=definition["name"],
        version=1,
        secret_names=[*secret_names],
        created_at=now,
        updated_at=now,
        mcp_server_id=mcp_server_id,
    )
    db.add(tool)
    await _flush_name(db)
    await _record_version(db, tool, definition)
    return tool


async def add_version(db: AsyncSession, tool: Tool, definition: Definition) -> None:
    """Store a new version of a tool, which the caller has locked; agents keep the one they have."""
    tool.version += 1
    tool.updated_at = utc_now()
    await db.flush()
    await _record_version(db, tool, definition)


async def require_creatable(
    db: AsyncSession, outbound: Outbound, workspace_id: UUID, definition: Definition
) -> tuple[str, ...]:
    """Return the names of the secrets that a new tool would use; raises as `create_tool` does."""
    names = check(definition, outbound)
    await _require_secrets(db, workspace_id, names, definition)
    await _require_free_name(db, workspace_id, definition["name"])
    return names


async def list_tools(
    db: AsyncSession, workspace_id: UUID, *, archived: bool, before_id: UUID | None, limit: int
) -> list[StoredTool]:
    """Return up to `limit` tools older than `before_id`, newest first."""
    query = (
        select(Tool, ToolVersion.definition)
        .join(ToolVersion, _is_newest())
        .where(
            Tool.workspace_id == workspace_id,
            Tool.archived_at.is_not(None) if archived else Tool.archived_at.is_(None),
            Tool.id < before_id if before_id else true(),
        )
    )
    rows = await db.execute(query.order_by(Tool.id.desc()).limit(limit))
    return [_stored(tool, definition) for tool, definition in rows]


async def get_tool(
    db: AsyncSession, workspace_id: UUID, tool_id: UUID, *, for_update: bool = False
) -> StoredTool:
    """Return one tool, archived or not. Raises `ToolNotFound`."""
    tool = await _get(db, workspace_id, tool_id, for_update=for_update)
    version = await db.get_one(ToolVersion, (workspace_id, tool_id, tool.version))
    return _stored(tool, version.definition)


async def list_versions(
    db: AsyncSession, workspace_id: UUID, tool_id: UUID, *, before: int | None, limit: int
) -> list[StoredTool]:
    """Return up to `limit` versions below `before`, newest first. Raises `ToolNotFound`."""
    await _get(db, workspace_id, tool_id)
    query = select(ToolVersion).where(
        ToolVersion.workspace_id == workspace_id,
        ToolVersion.tool_id == tool_id,
        ToolVersion.version < before if before is not None else true(),
    )
    rows = await db.scalars(query.order_by(ToolVersion.version.desc()).limit(limit))
    return [StoredTool(tool_id, row.version, row.definition, row.created_at) for row in rows]


async def update_tool(
    db: AsyncSession,
    outbound: Outbound,
    workspace_id: UUID,
    tool_id: UUID,
    changes: Mapping[str, Any],
) -> tuple[StoredTool, int]:
    """Store the changes as a new version, and give it to the agents that have the tool.

    Return the tool and the number of those agents, each of which has a new version, too. Nothing
    happens where no value changes. Raises `ToolNotFound`, `ToolArchived`, and what `create_tool`
    raises; `TooManyTools` where an agent's definitions became too large.
    """
    tool = await _get(db, workspace_id, tool_id, for_update=True)
    if tool.archived_at:
        raise ToolArchived("The tool is archived and cannot be changed: create a new one.")
    before = await db.get_one(ToolVersion, (workspace_id, tool_id, tool.version))
    definition = {**before.definition, **changes}
    if definition == before.definition:
        return _stored(tool, definition), 0
    if tool.mcp_server_id and (
        fixed := _OF_MCP_SERVERS & _different(definition, before.definition)
    ):
        raise ToolInvalid(f"`{min(fixed)}` is its MCP server's: accept a new definition instead.")
    names = check(definition, outbound)
    await _require_secrets(db, workspace_id, names, definition)
    if definition["name"] != tool.name:
        await _require_free_name(db, workspace_id, definition["name"])
        tool.name = definition["name"]
    tool.version += 1
    tool.updated_at = utc_now()
    tool.secret_names = [*names]
    await _flush_name(db)
    await _record_version(db, tool, definition)
    return _stored(tool, definition), await _move_agents(db, tool)


async def archive_tool(db: AsyncSession, workspace_id: UUID, tool_id: UUID) -> None:
    """Archive a tool that no agent has; its name is free again. Again: nothing changes.

    Raises `ToolNotFound` and `ToolInUse`.
    """
    tool = await _get(db, workspace_id, tool_id, for_update=True)
    if tool.mcp_server_id:
        raise ToolInvalid("The tool is an MCP server's: delete the server, or take it from agents.")
    users = len(await _agents_with(db, tool))
    if users:
        raise ToolInUse(f"{users} agents have this tool: take it away from them first.")
    tool.archived_at = tool.archived_at or utc_now()
    await db.flush()


async def _move_agents(db: AsyncSession, tool: Tool) -> int:
    """Pin the newest version in every agent that has the tool; return their number."""
    agent_ids = await _agents_with(db, tool)
    for agent_id in agent_ids:
        agent = await crud.get_agent(db, tool.workspace_id, agent_id, for_update=True)
        pins = [_moved(each, tool) for each in agent.tools or ()]
        definitions = await pinning.load_definitions(db, tool.workspace_id, pins)
        pinning.check_set(pins, definitions)
        await crud.update_agent(db, tool.workspace_id, agent_id, tools=pins)
    return len(agent_ids)


async def size_of_agents(db: AsyncSession, workspace_id: UUID, tool_id: UUID) -> int:
    """Return how many bytes the newest versions of the agents that have the tool take."""
    size = func.coalesce(func.sum(row_bytes(Agent, db.get_bind().dialect.name)), 0)
    its_agents = and_(Agent.workspace_id == AgentTool.workspace_id, Agent.id == AgentTool.agent_id)
    query = select(size).select_from(AgentTool).join(Agent, its_agents)
    found = await db.scalar(
        query.where(
            AgentTool.workspace_id == workspace_id,
            AgentTool.tool_id == tool_id,
            Agent.archived_at.is_(None),
        )
    )
    return int(found or 0)


def _moved(pin: Mapping[str, Any], tool: Tool) -> dict[str, Any]:
    """Return a pin with the tool's newest version, where it is of that tool."""
    if "mcp_server_id" in pin:
        return {**pin, "tools": [_moved(each, tool) for each in pin["tools"]]}
    return {**pin, "version": tool.version} if pin["tool_id"] == str(tool.id) else dict(pin)


async def _agents_with(db: AsyncSession, tool: Tool) -> Sequence[UUID]:
    query = (
        select(AgentTool.agent_id)
        .join(
            Agent,
            and_(Agent.workspace_id == AgentTool.workspace_id, Agent.id == AgentTool.agent_id),
        )
        .where(
            AgentTool.workspace_id == tool.workspace_id,
            AgentTool.tool_id == tool.id,
            Agent.archived_at.is_(None),
        )
    )
    return (await db.scalars(query.order_by(AgentTool.agent_id))).all()


async def _get(
    db: AsyncSession, workspace_id: UUID, tool_id: UUID, *, for_update: bool = False
) -> Tool:
    tool = await db.get(Tool, (workspace_id, tool_id), with_for_update=for_update)
    if tool is None:
        raise ToolNotFound("No tool with this id exists in this workspace.")
    return tool


async def _require_secrets(
    db: AsyncSession, workspace_id: UUID, names: Sequence[str], definition: Definition
) -> None:
    if names:
        url = definition["http"]["url"]
        await secrets.require_bound_secrets(db, workspace_id, frozenset(names), url)


async def _require_free_name(db: AsyncSession, workspace_id: UUID, name: str) -> None:
    taken = select(Tool.id).where(
        Tool.workspace_id == workspace_id, Tool.name == name, Tool.archived_at.is_(None)
    )
    if await db.scalar(taken):
        raise _name_taken()


async def _flush_name(db: AsyncSession) -> None:
    """Write the tool's row. Raises `ToolNameTaken` where a concurrent request was first."""
    try:
        await db.flush()
    except IntegrityError:
        raise _name_taken() from None


def _name_taken() -> ToolNameTaken:
    return ToolNameTaken("Another tool of the workspace has this name.")


async def _record_version(db: AsyncSession, tool: Tool, definition: Definition) -> None:
    db.add(
        ToolVersion(
            workspace_id=tool.workspace_id,
            tool_id=tool.id,
            version=tool.version,
            definition=dict(definition),
            shown_sha256=shown_sha256(definition),
        )
    )
    await db.flush()


def _different(one: Definition, other: Definition) -> set[str]:
    return {key for key, value in one.items() if value != other.get(key)}


def _is_newest() -> ColumnElement[bool]:
    return and_(
        ToolVersion.workspace_id == Tool.workspace_id,
        ToolVersion.tool_id == Tool.id,
        ToolVersion.version == Tool.version,
    )


def _stored(tool: Tool, definition: Definition) -> StoredTool:
    return StoredTool(
        tool.id, tool.version, definition, tool.created_at, tool.updated_at, tool.archived_at
    )
