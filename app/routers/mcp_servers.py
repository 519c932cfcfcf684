"""`/mcp-servers`: MCP servers, the tools that they list, and which of these models may see."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request, Response

from app.http.deps import Caller, DatabaseDep, Db, McpDirectoryDep, OutboundDep, ReadingDb, Storage
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.http.read_only import changeable
from app.schemas.mcp import (
    McpServerCreate,
    McpServerRead,
    McpServerRefreshed,
    McpServerSummary,
    McpServerUpdate,
    McpToolAccept,
)
from app.services.identity import audit
from app.services.mcp_port import McpListing
from app.services.tools import mcp_servers
from app.services.tools.mcp_definitions import check_server
from app.services.tools.mcp_reads import StoredMcpServer

router = APIRouter(prefix="/mcp-servers", tags=["tools"], route_class=EndpointRoute)

ToolName = Annotated[str, Path(max_length=200)]


@router.post("", response_model=McpServerRead, status_code=HTTPStatus.CREATED)
async def create_mcp_server(  # noqa: PLR0913, PLR0917  # one per dependency
    body: McpServerCreate,
    database: DatabaseDep,
    caller: Caller,
    directory: McpDirectoryDep,
    outbound: OutboundDep,
    storage: Storage,
) -> dict[str, Any]:
    """Connect to an MCP server, list its tools and store them.

    A model sees none of them until its definition is accepted.
    """
    settings = body.model_dump()
    names = check_server(settings, outbound)
    directory.require_program(settings)
    async with database.reading() as db:
        await mcp_servers.require_creatable(db, caller.workspace_id, settings)
        await mcp_servers.require_bound_secrets(db, caller.workspace_id, settings, names)
    listing = await directory.list_tools(caller.workspace_id, settings, names)
    async with database.transaction() as db:
        await storage.require_room(caller.workspace_id, _size_bytes(listing), db)
        server = await mcp_servers.create_server(db, caller.workspace_id, settings, names, listing)
        audit.record(db, caller, audit.Action.MCP_SERVER_CREATED, server.id, name=settings["name"])
    return _fields(server)


@router.get("", response_model=list[McpServerSummary])
async def list_mcp_servers(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[dict[str, Any]]:
    """List MCP servers, newest first, without their tools."""
    servers = await mcp_servers.list_servers(
        db, caller.workspace_id, before_id=cursor_id(cursor), limit=limit + 1
    )
    page = link_next(request, response, servers, limit, lambda server: server.id)
    return [_fields(server) for server in page]


@router.get("/{server_id}", response_model=McpServerRead)
async def get_mcp_server(server_id: UUID, db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """Get an MCP server with its tools, as they were listed last."""
    return _fields(await mcp_servers.get_server(db, caller.workspace_id, server_id))


@router.put("/{server_id}", response_model=McpServerRead)
async def update_mcp_server(  # noqa: PLR0913, PLR0917  # one per dependency
    server_id: UUID,
    body: McpServerUpdate,
    database: DatabaseDep,
    caller: Caller,
    directory: McpDirectoryDep,
    outbound: OutboundDep,
    storage: Storage,
) -> dict[str, Any]:
    """Change any subset of a server's fields; its tools are listed again.

    Nothing is stored where that fails. Tools that were accepted keep their effect and approval:
    change them with `PUT /tools/{id}`.
    """
    async with database.reading() as db:
        current = await mcp_servers.get_server(db, caller.workspace_id, server_id)
    changes = changeable(body, McpServerRead.model_validate(_fields(current)))
    settings = {**current.settings, **changes}
    if settings == current.settings:
        return _fields(current)
    names = check_server(settings, outbound)
    directory.require_program(settings)
    async with database.reading() as db:
        await mcp_servers.require_bound_secrets(db, caller.workspace_id, settings, names)
    listing = await directory.list_tools(caller.workspace_id, settings, names)
    async with database.transaction() as db:
        await storage.require_room(caller.workspace_id, _size_bytes(listing), db)
        await mcp_servers.update_server(db, caller.workspace_id, server_id, settings, names)
        server, _ = await mcp_servers.store_listing(db, caller.workspace_id, server_id, listing)
        audit.record(db, caller, audit.Action.MCP_SERVER_UPDATED, server_id, fields=sorted(changes))
    return _fields(server)


router.patch("/{server_id}", response_model=McpServerRead, name="patch_mcp_server")(
    update_mcp_server
)


@router.delete("/{server_id}", status_code=HTTPStatus.NO_CONTENT)
async def archive_mcp_server(server_id: UUID, db: Db, caller: Caller) -> None:
    """Delete an MCP server that no agent has; its name can be used again."""
    await mcp_servers.archive_server(db, caller.workspace_id, server_id)
    audit.record(db, caller, audit.Action.MCP_SERVER_ARCHIVED, server_id)


@router.post("/{server_id}/refresh", response_model=McpServerRefreshed)
async def refresh_mcp_server(
    server_id: UUID,
    database: DatabaseDep,
    caller: Caller,
    directory: McpDirectoryDep,
    storage: Storage,
) -> dict[str, Any]:
    """List the server's tools again. What was accepted stays as it is.

    Calls of a tool whose definition is another one by now are refused until it is accepted.
    """
    async with database.reading() as db:
        current = await mcp_servers.get_server(db, caller.workspace_id, server_id)
        names = await mcp_servers.secret_names(db, caller.workspace_id, server_id)
    listing = await directory.list_tools(caller.workspace_id, current.settings, names)
    async with database.transaction() as db:
        await storage.require_room(caller.workspace_id, _size_bytes(listing), db)
        server, changes = await mcp_servers.store_listing(
            db, caller.workspace_id, server_id, listing
        )
        audit.record(
            db,
            caller,
            audit.Action.MCP_SERVER_LISTED,
            server_id,
            added=len(changes.added),
            changed=len(changes.changed),
            removed=len(changes.removed),
        )
    return {
        **_fields(server),
        "added": changes.added,
        "changed": changes.changed,
        "removed": changes.removed,
    }


@router.post("/{server_id}/tools/{name}/accept", response_model=McpServerRead)
async def accept_mcp_tool(
    server_id: UUID, name: ToolName, body: McpToolAccept, db: Db, caller: Caller
) -> dict[str, Any]:
    """Let models see the definition that the server listed last.

    Every agent that has the tool, or all of the server's, has it at once, as a new version.
    """
    server, agents = await mcp_servers.accept_tool(
        db, caller.workspace_id, server_id, name, body.sha256
    )
    [tool] = [tool for tool in server.tools if tool.name == name]
    audit.record(
        db,
        caller,
        audit.Action.MCP_TOOL_ACCEPTED,
        server_id,
        name=name,
        sha256=tool.sha256,
        agents=agents,
    )
    return _fields(server)


def _size_bytes(listing: McpListing) -> int:
    return sum(
        len(tool.description) + len(orjson.dumps(tool.parameters, default=str))
        for tool in listing.tools
    )


def _fields(server: StoredMcpServer) -> dict[str, Any]:
    """Return the fields of `McpServerRead`."""
    return {
        **server.settings,
        "id": server.id,
        "protocol_version": server.protocol_version,
        "server_name": server.server_name,
        "server_version": server.server_version,
        "created_at": server.created_at,
        "updated_at": server.updated_at,
        "listed_at": server.listed_at,
        "tools": server.tools,
    }
