"""The exact versions of tools that an agent's version has: pins.

A pin is `{"tool_id", "version", "approval"}`, or stands for tools of an MCP server:
`{"mcp_server_id", "names", "approval", "tools": [{"tool_id", "version"}]}`, where no `names` stand
for all that were accepted. What locks several things locks MCP servers first, then tools, then
agents, each by id, so that changes of them never wait for each other in turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import and_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import McpServer, McpTool, Tool, ToolVersion
from app.services.crud import VersionNotFound, flat_pins
from app.services.tool_ports import AgentTools, OnUnknown, ToolPolicy
from app.services.tools.definitions import Definition, pinned_tool
from app.services.tools.errors import (
    McpServerNotFound,
    ToolArchived,
    ToolNameTaken,
    ToolNotFound,
    TooManyTools,
)

MAX_TOOLS = 64
MAX_DEFINITION_BYTES = 64 * 1024

Pin = Mapping[str, Any]
Definitions = Mapping[tuple[UUID, int], Definition]
"""By tool and version."""


async def pin(
    db: AsyncSession, workspace_id: UUID, references: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """Lock the tools and return their pins, with the newest version where none is given.

    `None` stands for no tools. Raises `ToolNotFound`, `McpServerNotFound`, `ToolArchived`,
    `VersionNotFound`, `ToolNameTaken` and `TooManyTools`.
    """
    if not references:
        return None
    servers = {each["mcp_server_id"] for each in references if each.get("mcp_server_id")}
    accepted = await lock_accepted_tools(db, workspace_id, servers)
    single = {each["tool_id"] for each in references if each.get("tool_id")}
    tools = await _lock(db, workspace_id, single)
    pins: list[dict[str, Any]] = [
        mcp_pin(each, accepted[each["mcp_server_id"]])
        if each.get("mcp_server_id")
        else {
            "tool_id": str(each["tool_id"]),
            "version": each.get("version") or tools[each["tool_id"]].version,
            "approval": each.get("approval"),
        }
        for each in references
    ]
    check_set(pins, await load_definitions(db, workspace_id, pins))
    return pins


AcceptedTools = Mapping[str, Tool]
"""By their names at the MCP server, in that order."""


async def lock_accepted_tools(
    db: AsyncSession, workspace_id: UUID, server_ids: set[UUID]
) -> dict[UUID, AcceptedTools]:
    """Lock MCP servers; return the tools of each that were accepted. Raises `McpServerNotFound`."""
    if not server_ids:
        return {}
    query = select(McpServer.id).where(
        McpServer.workspace_id == workspace_id,
        McpServer.id.in_(server_ids),
        McpServer.archived_at.is_(None),
    )
    found = set(await db.scalars(query.order_by(McpServer.id).with_for_update(read=True)))
    if server_ids - found:
        raise McpServerNotFound("No MCP server with this id exists in this workspace.")
    rows = await db.execute(
        select(McpTool.server_id, McpTool.name, Tool)
        .join(Tool, and_(Tool.workspace_id == McpTool.workspace_id, Tool.id == McpTool.tool_id))
        .where(
            McpTool.workspace_id == workspace_id,
            McpTool.server_id.in_(server_ids),
            Tool.archived_at.is_(None),
        )
        .order_by(McpTool.name)
    )
    accepted: dict[UUID, dict[str, Tool]] = {server_id: {} for server_id in server_ids}
    for server_id, name, tool in rows:
        accepted[server_id][name] = tool
    return dict(accepted)


def mcp_pin(reference: Mapping[str, Any], accepted: AcceptedTools) -> dict[str, Any]:
    """Return the pin of a reference to an MCP server: what of it is accepted, at the newest."""
    names = reference.get("names")
    return {
        "mcp_server_id": str(reference["mcp_server_id"]),
        "names": None if names is None else sorted(names),
        "approval": reference.get("approval"),
        "tools": [
            {"tool_id": str(tool.id), "version": tool.version}
            for name, tool in accepted.items()
            if names is None or name in names
        ],
    }


async def require_tools(db: AsyncSession, workspace_id: UUID, pins: Sequence[Pin] | None) -> None:
    """Lock the tools of `pins`. Raises `ToolArchived` where one can be given to no agent."""
    if pins:
        await _lock(db, workspace_id, {UUID(each["tool_id"]) for each in flat_pins(pins)})


async def _lock(db: AsyncSession, workspace_id: UUID, ids: set[UUID]) -> dict[UUID, Tool]:
    query = select(Tool).where(Tool.workspace_id == workspace_id, Tool.id.in_(ids))
    locking = query.order_by(Tool.id).with_for_update(read=True)
    tools = {tool.id: tool for tool in await db.scalars(locking)}
    if ids - set(tools):
        raise ToolNotFound("No tool with this id exists in this workspace.")
    for tool in tools.values():
        if tool.archived_at:
            raise ToolArchived(f"The tool {tool.name} is archived: no agent can be given it.")
    return tools


async def load_definitions(
    db: AsyncSession, workspace_id: UUID, pins: Sequence[Pin]
) -> dict[tuple[UUID, int], Definition]:
    """Return the definitions of `pins`. Raises `VersionNotFound`."""
    keys = [(UUID(each["tool_id"]), each["version"]) for each in flat_pins(pins)]
    query = select(ToolVersion).where(
        ToolVersion.workspace_id == workspace_id,
        tuple_(ToolVersion.tool_id, ToolVersion.version).in_(keys),
    )
    found = {(row.tool_id, row.version): row.definition for row in await db.scalars(query)}
    if missing := set(keys) - set(found):
        raise VersionNotFound(f"The tool has no version {min(missing)[1]}.")
    return dict(found)


def check_set(pins: Sequence[Pin], definitions: Definitions) -> None:
    """Raise `TooManyTools` or `ToolNameTaken` if an agent cannot have these together."""
    shown = [definitions[UUID(each["tool_id"]), each["version"]] for each in flat_pins(pins)]
    names = [each["name"] for each in shown]
    if len(set(names)) < len(names):
        raise ToolNameTaken("An agent's tools must have different names.")
    size_bytes = sum(len(orjson.dumps(_function(each))) for each in shown)
    if len(shown) > MAX_TOOLS or size_bytes > MAX_DEFINITION_BYTES:
        raise TooManyTools(
            f"An agent may have {MAX_TOOLS} tools, whose names, descriptions and parameters take "
            f"{MAX_DEFINITION_BYTES // 1024} KB together."
        )


def agent_tools(
    pins: Sequence[Pin], policy: Mapping[str, Any] | None, definitions: Definitions
) -> AgentTools:
    """Return the tools of an agent version, sorted by name."""
    pinned = [
        pinned_tool(UUID(each["tool_id"]), each["version"], definition, each["approval"])
        for each in flat_pins(pins)
        if (definition := definitions.get((UUID(each["tool_id"]), each["version"])))
    ]
    pinned.sort(key=lambda tool: tool.definition.name)
    return AgentTools(
        tools={tool.definition.name: tool for tool in pinned},
        policy=tool_policy(policy),
        definitions=tuple(tool.definition for tool in pinned),
    )


def tool_policy(given: Mapping[str, Any] | None) -> ToolPolicy:
    """Return a stored policy, or the default."""
    if given is None:
        return ToolPolicy()
    fields: dict[str, Any] = {**given, "on_unknown": OnUnknown(given["on_unknown"])}
    return ToolPolicy(**fields)


def _function(definition: Definition) -> dict[str, Any]:
    return {key: definition[key] for key in ("name", "description", "parameters")}
