"""Reads MCP servers and their tools, as the API shows them.

Each function works in the caller's transaction `db` and never commits. Rows of another workspace
are treated as absent.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.value_objects import value_object
from app.models import McpServer, McpTool, Tool
from app.services.tools.errors import McpServerNotFound
from app.services.tools.mcp_definitions import ServerSettings

_SHOWN = ("description", "parameters", "output_schema", "hints")


@value_object(frozen=True, slots=True)
class StoredMcpTool:
    """A tool of a server, with the fields of the API's response."""

    name: str
    tool_name: str | None
    tool_id: UUID | None
    status: str
    """`accepted`, `pending`, `changed`, `unusable`, or `removed`: it is listed no more."""
    problem: str | None
    description: str
    parameters: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    hints: Mapping[str, bool]
    sha256: str


@value_object(frozen=True, slots=True)
class StoredMcpServer:
    """A server with its tools."""

    id: UUID
    settings: ServerSettings
    protocol_version: str
    server_name: str
    server_version: str
    created_at: datetime
    updated_at: datetime
    listed_at: datetime
    tools: Sequence[StoredMcpTool] = ()


async def find_server(
    db: AsyncSession, workspace_id: UUID, server_id: UUID, *, for_update: bool = False
) -> McpServer:
    """Return a server's row, locked `for_update`. Raises `McpServerNotFound`."""
    server = await db.get(McpServer, (workspace_id, server_id), with_for_update=for_update)
    if server is None or server.archived_at:
        raise McpServerNotFound("No MCP server with this id exists in this workspace.")
    return server


async def listed_tools(db: AsyncSession, server: McpServer) -> Sequence[McpTool]:
    """Return what a server lists or has listed, by name."""
    query = select(McpTool).where(
        McpTool.workspace_id == server.workspace_id, McpTool.server_id == server.id
    )
    return (await db.scalars(query.order_by(McpTool.name))).all()


async def accepted_tools(
    db: AsyncSession, server: McpServer, *, for_update: bool = False
) -> Sequence[Tool]:
    """Return the tools that were made of a server's, by id."""
    ids = [row.tool_id for row in await listed_tools(db, server) if row.tool_id]
    query = select(Tool).where(Tool.workspace_id == server.workspace_id, Tool.id.in_(ids))
    query = query.order_by(Tool.id)
    return (await db.scalars(query.with_for_update() if for_update else query)).all()


async def read_server(db: AsyncSession, server: McpServer) -> StoredMcpServer:
    """Return a server with its tools."""
    names = {tool.id: tool.name for tool in await accepted_tools(db, server)}
    tools = [_stored_tool(row, names) for row in await listed_tools(db, server)]
    return stored_server(server, tools)


def stored_server(server: McpServer, tools: Sequence[StoredMcpTool]) -> StoredMcpServer:
    """Return a server with `tools`."""
    return StoredMcpServer(
        server.id,
        {"oauth": None, **server.settings},
        server.protocol_version,
        server.server_name,
        server.server_version,
        server.created_at,
        server.updated_at,
        server.listed_at,
        tools,
    )


def _stored_tool(row: McpTool, names: Mapping[UUID, str]) -> StoredMcpTool:
    return StoredMcpTool(
        row.name,
        names.get(row.tool_id) if row.tool_id else None,
        row.tool_id,
        _status(row),
        row.problem,
        **{key: row.listed[key] for key in _SHOWN},
        sha256=row.sha256,
    )


def _status(row: McpTool) -> str:
    if not row.is_listed:
        return "removed"
    if row.accepted_sha256 == row.sha256:
        return "accepted"
    if row.problem:
        return "unusable"
    return "changed" if row.accepted_sha256 else "pending"
