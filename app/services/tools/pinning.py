"""The exact versions of tools that an agent's version has: pins.

A pin is `{"tool_id", "version", "approval"}`. What locks several things locks tools first, by id,
and then agents, by id, so that changes of tools and of agents never wait for each other in turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Tool, ToolVersion
from app.services.crud import VersionNotFound
from app.services.tool_ports import AgentTools, OnUnknown, ToolPolicy
from app.services.tools.definitions import Definition, pinned_tool
from app.services.tools.errors import ToolArchived, ToolNameTaken, ToolNotFound, TooManyTools

MAX_TOOLS = 64
MAX_DEFINITION_BYTES = 64 * 1024

Pin = Mapping[str, Any]
Definitions = Mapping[tuple[UUID, int], Definition]
"""By tool and version."""


async def pin(
    db: AsyncSession, workspace_id: UUID, references: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]] | None:
    """Lock the tools and return their pins, with the newest version where none is given.

    `None` stands for no tools. Raises `ToolNotFound`, `ToolArchived`, `VersionNotFound`,
    `ToolNameTaken` and `TooManyTools`.
    """
    if not references:
        return None
    tools = await _lock(db, workspace_id, {each["tool_id"] for each in references})
    pins: list[dict[str, Any]] = [
        {
            "tool_id": str(each["tool_id"]),
            "version": each.get("version") or tools[each["tool_id"]].version,
            "approval": each.get("approval"),
        }
        for each in references
    ]
    check_set(pins, await load_definitions(db, workspace_id, pins))
    return pins


async def require_tools(db: AsyncSession, workspace_id: UUID, pins: Sequence[Pin] | None) -> None:
    """Lock the tools of `pins`. Raises `ToolArchived` where one can be given to no agent."""
    if pins:
        await _lock(db, workspace_id, {UUID(each["tool_id"]) for each in pins})


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
    keys = [(UUID(each["tool_id"]), each["version"]) for each in pins]
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
    shown = [definitions[UUID(each["tool_id"]), each["version"]] for each in pins]
    names = [each["name"] for each in shown]
    if len(set(names)) < len(names):
        raise ToolNameTaken("An agent's tools must have different names.")
    size_bytes = sum(len(orjson.dumps(_function(each))) for each in shown)
    if len(pins) > MAX_TOOLS or size_bytes > MAX_DEFINITION_BYTES:
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
        for each in pins
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
