"""MCP servers of a workspace: stored with the tools that they list, which a person accepts.

Each function works in the caller's transaction `db` and never commits; none speaks to a server.
Rows of another workspace are treated as absent.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import func, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.value_objects import value_object
from app.models import Agent, AgentMcpServer, McpServer, McpTool, Tool, ToolVersion, new_id, utc_now
from app.services import crud
from app.services.mcp_port import McpListing
from app.services.tools import pinning, registry, secrets
from app.services.tools.errors import (
    McpServerInUse,
    McpServerNameTaken,
    McpToolNotFound,
    SchemaNotSupported,
    ToolInvalid,
)
from app.services.tools.mcp_definitions import (
    ServerSettings,
    definition_sha256,
    listed_definition,
    redefined,
    tool_definition,
    tool_name,
)
from app.services.tools.mcp_oauth import delete_grant
from app.services.tools.mcp_reads import (
    StoredMcpServer,
    accepted_tools,
    find_server,
    listed_tools,
    read_server,
    stored_server,
)

MOST_SERVERS = 100
"""Of a workspace."""
MOST_TOOLS_OF_A_SERVER = 512


@value_object(frozen=True, slots=True)
class ListingChanges:
    """What a new listing changed: names of tools at the server."""

    added: Sequence[str]
    changed: Sequence[str]
    removed: Sequence[str]


async def require_creatable(db: AsyncSession, workspace_id: UUID, settings: ServerSettings) -> None:
    """Raise `McpServerNameTaken`, and `ToolInvalid` where the workspace has too many."""
    alive = (McpServer.workspace_id == workspace_id, McpServer.archived_at.is_(None))
    if await db.scalar(select(McpServer.id).where(*alive, McpServer.name == settings["name"])):
        raise _name_taken()
    if (await db.scalar(select(func.count()).select_from(McpServer).where(*alive)) or 0) >= (
        MOST_SERVERS
    ):
        raise ToolInvalid(f"A workspace has at most {MOST_SERVERS} MCP servers.")


async def require_bound_secrets(
    db: AsyncSession, workspace_id: UUID, settings: ServerSettings, names: Sequence[str]
) -> None:
    """Raise `SecretNotFound` or `SecretHostMismatch` unless the secrets may go to the server."""
    if names:
        await secrets.require_bound_secrets(db, workspace_id, frozenset(names), settings["url"])
    oauth = settings["oauth"]
    if oauth and oauth["client_secret"]:
        name = frozenset((oauth["client_secret"],))
        await secrets.require_bound_secrets(db, workspace_id, name, oauth["issuer"])


async def create_server(
    db: AsyncSession,
    workspace_id: UUID,
    settings: ServerSettings,
    secret_names: Sequence[str],
    listing: McpListing,
) -> StoredMcpServer:
    """Insert a server with what it lists. Raises what `require_creatable` raises."""
    await require_creatable(db, workspace_id, settings)
    now = utc_now()
    server = McpServer(
        workspace_id=workspace_id,
        id=new_id(),
        created_at=now,
        name=settings["name"],
        settings=dict(settings),
        secret_names=[*secret_names],
        protocol_version=listing.protocol_version,
        server_name=listing.server_name,
        server_version=listing.server_version,
        listed_at=now,
        updated_at=now,
    )
    db.add(server)
    try:
        await db.flush()
    except IntegrityError:
        raise _name_taken() from None
    await _store_tools(db, server, listing)
    return await read_server(db, server)


async def list_servers(
    db: AsyncSession, workspace_id: UUID, *, before_id: UUID | None, limit: int
) -> list[StoredMcpServer]:
    """Return up to `limit` servers older than `before_id`, newest first, without their tools."""
    query = select(McpServer).where(
        McpServer.workspace_id == workspace_id,
        McpServer.archived_at.is_(None),
        McpServer.id < before_id if before_id else true(),
    )
    rows = await db.scalars(query.order_by(McpServer.id.desc()).limit(limit))
    return [stored_server(server, ()) for server in rows]


async def get_server(db: AsyncSession, workspace_id: UUID, server_id: UUID) -> StoredMcpServer:
    """Return a server with its tools. Raises `McpServerNotFound`."""
    return await read_server(db, await find_server(db, workspace_id, server_id))


async def secret_names(db: AsyncSession, workspace_id: UUID, server_id: UUID) -> Sequence[str]:
    """Return the secrets that a server's headers use. Raises `McpServerNotFound`."""
    return (await find_server(db, workspace_id, server_id)).secret_names


async def update_server(
    db: AsyncSession,
    workspace_id: UUID,
    server_id: UUID,
    settings: ServerSettings,
    secret_names: Sequence[str],
) -> StoredMcpServer:
    """Store the settings of a server; its name stays. Raises `McpServerNotFound`.

    What its owner says about effects and approvals holds for tools that are accepted from now on.
    """
    server = await find_server(db, workspace_id, server_id, for_update=True)
    if grants_differ(server.settings, settings):
        await delete_grant(db, workspace_id, server_id)
    server.settings, server.secret_names = dict(settings), [*secret_names]
    server.updated_at = utc_now()
    await db.flush()
    return await read_server(db, server)


def grants_differ(before: ServerSettings, after: ServerSettings) -> bool:
    """Tell whether what was granted under the settings `before` is of no use under `after`."""
    return (before["url"], before.get("oauth")) != (after["url"], after.get("oauth"))


async def archive_server(db: AsyncSession, workspace_id: UUID, server_id: UUID) -> None:
    """Archive a server that no agent has, and its tools. Raises `McpServerInUse`."""
    server = await find_server(db, workspace_id, server_id, for_update=True)
    users = len(await _agents_with(db, server))
    if users:
        raise McpServerInUse(f"{users} agents have this MCP server: take it away from them first.")
    now = utc_now()
    for tool in await accepted_tools(db, server, for_update=True):
        tool.archived_at = tool.archived_at or now
    server.archived_at = now
    await delete_grant(db, workspace_id, server_id)
    await db.flush()


async def store_listing(
    db: AsyncSession, workspace_id: UUID, server_id: UUID, listing: McpListing
) -> tuple[StoredMcpServer, ListingChanges]:
    """Store what a server lists now. Nothing that was accepted changes by it.

    With `auto_accept` what is new or changed is accepted at once. Raises `McpServerNotFound`.
    """
    server = await find_server(db, workspace_id, server_id, for_update=True)
    server.protocol_version = listing.protocol_version
    server.server_name, server.server_version = listing.server_name, listing.server_version
    server.listed_at = utc_now()
    changes = await _store_tools(db, server, listing)
    return await read_server(db, server), changes


async def accept_tool(
    db: AsyncSession, workspace_id: UUID, server_id: UUID, name: str, sha256: str | None
) -> tuple[StoredMcpServer, int]:
    """Let models see the definition that a server listed last; return the server.

    Every agent that has the tool, or all tools of the server, has it at once, as a new version;
    their number is returned, too. With `sha256` only that definition is accepted. Raises
    `McpServerNotFound`, `McpToolNotFound`, `SchemaNotSupported`, `ToolInvalid`, `TooManyTools`.
    """
    server = await find_server(db, workspace_id, server_id, for_update=True)
    row = await db.get(McpTool, (workspace_id, server_id, name), with_for_update=True)
    if row is None or not row.is_listed:
        raise McpToolNotFound("The MCP server lists no tool with this name.")
    if row.problem:
        raise SchemaNotSupported(row.problem)
    if sha256 is not None and sha256 != row.sha256:
        raise ToolInvalid("The server lists another definition by now: look at that one first.")
    moved = 0
    if await _accept(db, server, [row]):
        moved = await _move_agents(db, server)
    return await read_server(db, server), moved


async def _store_tools(db: AsyncSession, server: McpServer, listing: McpListing) -> ListingChanges:
    rows = {row.name: row for row in await listed_tools(db, server)}
    allowed = server.settings["allowed_tools"]
    added: list[str] = []
    changed: list[str] = []
    seen: set[str] = set()
    now = utc_now()
    for tool in listing.tools[:MOST_TOOLS_OF_A_SERVER]:
        kept, problem = listed_definition(tool)
        name, sha256 = kept["name"], definition_sha256(kept)
        if name in seen or (allowed is not None and name not in allowed):
            continue
        seen.add(name)
        row = rows.get(name)
        if row is None:
            added.append(name)
            row = rows[name] = McpTool(
                workspace_id=server.workspace_id, server_id=server.id, name=name, created_at=now
            )
            db.add(row)
        elif row.sha256 != sha256 or not row.is_listed:
            changed.append(name)
        row.listed, row.sha256, row.problem = kept, sha256, problem
        row.is_listed, row.updated_at = True, now
    removed = [name for name, row in rows.items() if row.is_listed and name not in seen]
    for name in removed:
        rows[name].is_listed = False
    await db.flush()
    if server.settings["auto_accept"]:
        usable = [row for row in rows.values() if row.is_listed and not row.problem]
        if await _accept(db, server, usable):
            await _move_agents(db, server)
    return ListingChanges(added, changed, removed)


async def _accept(db: AsyncSession, server: McpServer, rows: Sequence[McpTool]) -> bool:
    """Accept the definitions of `rows`; return whether that changed anything."""
    changes = False
    for row in sorted(rows, key=lambda row: str(row.tool_id)):
        if row.accepted_sha256 == row.sha256:
            continue
        changes = True
        tool = (
            await db.get(Tool, (server.workspace_id, row.tool_id), with_for_update=True)
            if (row.tool_id)
            else None
        )
        if tool is None:
            names = await _taken_names(db, server.workspace_id, server.name)
            name = tool_name(server.name, row.name, names)
            definition = tool_definition(server.id, server.settings, row.listed, name, row.sha256)
            tool = await registry.insert_tool(
                db, server.workspace_id, definition, mcp_server_id=server.id
            )
            row.tool_id = tool.id
        else:
            before = await db.get_one(ToolVersion, (server.workspace_id, tool.id, tool.version))
            await registry.add_version(
                db, tool, redefined(before.definition, row.listed, row.sha256)
            )
        row.accepted_sha256 = row.sha256
    await db.flush()
    return changes


async def _move_agents(db: AsyncSession, server: McpServer) -> int:
    """Pin what is accepted now in every agent that has the server; return how many changed."""
    accepted = await pinning.lock_accepted_tools(db, server.workspace_id, {server.id})
    moved = 0
    for agent_id in await _agents_with(db, server):
        agent = await crud.get_agent(db, server.workspace_id, agent_id, for_update=True)
        pins = [
            pinning.mcp_pin(each, accepted[server.id])
            if each.get("mcp_server_id") == str(server.id)
            else each
            for each in agent.tools or ()
        ]
        definitions = await pinning.load_definitions(db, server.workspace_id, pins)
        pinning.check_set(pins, definitions)
        before = agent.version
        await crud.update_agent(db, server.workspace_id, agent_id, tools=pins)
        moved += agent.version != before
    return moved


async def _agents_with(db: AsyncSession, server: McpServer) -> Sequence[UUID]:
    query = (
        select(AgentMcpServer.agent_id)
        .join(
            Agent,
            (Agent.workspace_id == AgentMcpServer.workspace_id)
            & (Agent.id == AgentMcpServer.agent_id),
        )
        .where(
            AgentMcpServer.workspace_id == server.workspace_id,
            AgentMcpServer.mcp_server_id == server.id,
            Agent.archived_at.is_(None),
        )
    )
    return (await db.scalars(query.order_by(AgentMcpServer.agent_id))).all()


async def _taken_names(db: AsyncSession, workspace_id: UUID, server_name: str) -> frozenset[str]:
    query = select(Tool.name).where(
        Tool.workspace_id == workspace_id,
        Tool.archived_at.is_(None),
        Tool.name.startswith(server_name, autoescape=True),
    )
    return frozenset(await db.scalars(query))


def _name_taken() -> McpServerNameTaken:
    return McpServerNameTaken("Another MCP server of the workspace has this name.")
