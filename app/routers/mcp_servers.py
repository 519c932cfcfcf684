"""`/mcp-servers`: MCP servers, the tools that they list, and which of these models may see."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request, Response

from app.core.database import Database
from app.core.security import Caller as CallerIdentity
from app.http.deps import (
    Caller,
    DatabaseDep,
    Db,
    McpAuthorizerDep,
    McpDirectoryDep,
    OutboundDep,
    ReadingDb,
    Storage,
)
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.http.read_only import changeable
from app.schemas.mcp import (
    McpAuthorizationBegin,
    McpAuthorizationBegun,
    McpAuthorizationFinish,
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
from app.services.tools.errors import ToolInvalid
from app.services.tools.mcp_definitions import ServerSettings, check_redirect_uri, check_server
from app.services.tools.mcp_directory import McpDirectory
from app.services.tools.mcp_reads import StoredMcpServer
from app.services.usage import StorageMeter

router = APIRouter(prefix="/mcp-servers", tags=["tools"], route_class=EndpointRoute)

_UNLISTED = McpListing("", "", "", ())
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

    A model sees none of them until its definition is accepted. A server whose `oauth` needs a
    person is stored without tools.
    """
    settings = body.model_dump()
    names = check_server(settings, outbound)
    directory.require_program(settings)
    async with database.reading() as db:
        await mcp_servers.require_creatable(db, caller.workspace_id, settings)
        await mcp_servers.require_bound_secrets(db, caller.workspace_id, settings, names)
    listing = _UNLISTED
    if not _wants_person(settings):
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
    change them with `PUT /tools/{id}`. Where `url` or `oauth` change, what was authorized is
    forgotten; a server whose `oauth` needs a person is then not listed.
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
    is_new = mcp_servers.grants_differ(current.settings, settings)
    listing = None
    if not (is_new and _wants_person(settings)):
        known_id = None if is_new else server_id
        listing = await directory.list_tools(caller.workspace_id, settings, names, known_id)
    async with database.transaction() as db:
        await storage.require_room(caller.workspace_id, _size_bytes(listing or _UNLISTED), db)
        server = await mcp_servers.update_server(
            db, caller.workspace_id, server_id, settings, names
        )
        if listing:
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
    return await _refreshed(server_id, database, caller, directory, storage)


@router.post("/{server_id}/authorization", response_model=McpAuthorizationBegun)
async def begin_mcp_authorization(
    server_id: UUID,
    body: McpAuthorizationBegin,
    database: DatabaseDep,
    caller: Caller,
    authorizer: McpAuthorizerDep,
) -> dict[str, Any]:
    """Begin the authorization of this server at an MCP server, by a person in a browser.

    The authorization server sends the person to `redirect_uri` within 10 minutes. What was
    authorized before is used until this one is finished.
    """
    check_redirect_uri(body.redirect_uri)
    settings = await _settings_for_person(server_id, database, caller)
    url, expires_at = await authorizer.begin(
        caller.workspace_id, server_id, settings, body.redirect_uri
    )
    return {"authorization_url": url, "expires_at": expires_at}


@router.post("/{server_id}/authorization/code", response_model=McpServerRefreshed)
async def finish_mcp_authorization(  # noqa: PLR0913, PLR0917  # one per dependency
    server_id: UUID,
    body: McpAuthorizationFinish,
    database: DatabaseDep,
    caller: Caller,
    authorizer: McpAuthorizerDep,
    directory: McpDirectoryDep,
    storage: Storage,
) -> dict[str, Any]:
    """Finish an authorization with what came back to `redirect_uri`, and list the server's tools.

    Access tokens are sealed as secrets are, and renewed. Where the listing fails, they are kept.
    """
    settings = await _settings_for_person(server_id, database, caller)
    await authorizer.finish(caller.workspace_id, server_id, settings, body.model_dump())
    async with database.transaction() as db:
        audit.record(db, caller, audit.Action.MCP_SERVER_AUTHORIZED, server_id)
    return await _refreshed(server_id, database, caller, directory, storage)


async def _refreshed(
    server_id: UUID,
    database: Database,
    caller: CallerIdentity,
    directory: McpDirectory,
    storage: StorageMeter,
) -> dict[str, Any]:
    """List the server's tools, store them, and return the fields of `McpServerRefreshed`."""
    async with database.reading() as db:
        current = await mcp_servers.get_server(db, caller.workspace_id, server_id)
        names = await mcp_servers.secret_names(db, caller.workspace_id, server_id)
    listing = await directory.list_tools(caller.workspace_id, current.settings, names, server_id)
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


async def _settings_for_person(
    server_id: UUID, database: Database, caller: CallerIdentity
) -> ServerSettings:
    async with database.reading() as db:
        server = await mcp_servers.get_server(db, caller.workspace_id, server_id)
    if not _wants_person(server.settings):
        raise ToolInvalid("The `oauth` of this MCP server needs no person: it has no such grant.")
    return server.settings


def _wants_person(settings: ServerSettings) -> bool:
    return bool(settings["oauth"]) and settings["oauth"]["grant"] == "authorization_code"


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
