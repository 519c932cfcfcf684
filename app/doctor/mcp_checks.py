"""MCP servers: reachable, authorized, and with the definitions that were accepted."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import anyio
from sqlalchemy import select

from app.core.config import Settings
from app.core.database import Database
from app.core.errors import AppError, StartRefused
from app.core.sealed_errors import SealBroken
from app.core.value_objects import value_object
from app.doctor.checks import Check, broken, ok, warning
from app.models import McpServer
from app.providers import mcp_client_of, mcp_programs
from app.services.mcp_port import McpListing
from app.services.tools.key_ring import KeyRing
from app.services.tools.mcp_definitions import definition_sha256, listed_definition
from app.services.tools.mcp_directory import McpDirectory
from app.services.tools.mcp_oauth import GrantState
from app.services.tools.mcp_reads import StoredMcpServer, read_server
from app.services.tools.secret_store import SecretStore

_MOST_SERVERS = 200
_AT_ONCE = 8
_MOST_NAMED = 5
_AUTHORIZE = "A person has to authorize it: `POST /mcp-servers/{id}/authorization`."
_ADVICE = {
    "mcp-unreachable": "Start it, or change its `url`: until then calls of its tools fail.",
    "mcp-incompatible": "Change its `url` to an endpoint that speaks MCP over streamable HTTP.",
    "mcp-unavailable": "Install `agent-platform[mcp]`.",
    "address-not-allowed": "Add its address to TOOLS_ALLOWED_ADDRESSES, or change its `url`.",
    "secret-not-found": "Store the secret with `POST /secrets`.",
    "secret-host-mismatch": "Store the secret again with the host among its `hosts`.",
}
_UNAUTHORIZED = "Check `headers` and `oauth` of the server, and the secrets in them."


@value_object(frozen=True, slots=True)
class _Server:
    """A server of a workspace as it is stored."""

    workspace_id: UUID
    secret_names: Sequence[str]
    stored: StoredMcpServer

    @property
    def name(self) -> str:
        return f"MCP server {self.stored.settings['name']}"


def check_programs(settings: Settings) -> Sequence[Check]:
    """Look at the programs in `MCP_SERVERS_FILE`: each command has to exist."""
    try:
        programs = mcp_programs(settings)
    except StartRefused as error:
        return [broken("MCP programs", str(error), "The server does not start with it: mend it.")]
    checks = [
        broken(
            "MCP programs",
            f"{name}: there is no command {command}",
            "Install it, or change MCP_SERVERS_FILE: until then calls of its tools fail.",
        )
        for name, command, is_there in programs
        if not is_there
    ]
    if programs and not checks:
        checks.append(ok("MCP programs", f"{', '.join(name for name, *_ in programs)}: installed"))
    return checks


async def check_mcp_servers(settings: Settings, database: Database) -> Sequence[Check]:
    """Ask the MCP servers of every workspace for their tools; what they answer is not stored."""
    async with database.reading() as db:
        query = select(McpServer).where(McpServer.archived_at.is_(None)).limit(_MOST_SERVERS)
        rows = await db.scalars(query.order_by(McpServer.workspace_id, McpServer.id))
        servers = [
            _Server(row.workspace_id, row.secret_names, await read_server(db, row)) for row in rows
        ]
    if not servers:
        return ()
    found: dict[int, Check] = {}
    limiter = anyio.CapacityLimiter(_AT_ONCE)
    keys = KeyRing.from_settings(settings)
    async with mcp_client_of(settings) as client, anyio.create_task_group() as group:
        directory = McpDirectory(database, client, SecretStore(database, keys), keys)

        async def check(number: int, server: _Server) -> None:
            async with limiter:
                found[number] = await _check_server(directory, server)

        for number, server in enumerate(servers):
            group.start_soon(check, number, server)
    return [found[number] for number in sorted(found)]


async def _check_server(directory: McpDirectory, server: _Server) -> Check:
    settings = server.stored.settings
    try:
        directory.require_program(settings)
        if settings["program"]:  # it would have to be started
            return _compared(server, None)
        by_person = _is_authorized_by_person(server)
        if by_person and (unlisted := await _without_token(directory, server)):
            return unlisted
        # A client by itself gets a token of its own, and keeps none.
        known_id = server.stored.id if by_person else None
        listing = await directory.list_tools(
            server.workspace_id, settings, server.secret_names, known_id
        )
    except SealBroken:
        finding = _said(server, "its secrets cannot be opened")
        return warning(server.name, finding, "See the check of secrets.")
    except AppError as error:
        advice = _ADVICE.get(error.code, _UNAUTHORIZED)
        if error.code == "mcp-unauthorized" and _is_authorized_by_person(server):
            advice = _AUTHORIZE
        return warning(server.name, _said(server, f"{error.code} ({error.detail})"), advice)
    return _compared(server, listing)


async def _without_token(directory: McpDirectory, server: _Server) -> Check | None:
    """Return the check of a server that is not asked, since it has no valid access token."""
    state = await directory.authorizer.state(server.workspace_id, server.stored.id)
    if state is GrantState.VALID:
        return None
    if state is GrantState.RENEWABLE:
        return _compared(server, None, "; its access token is renewed at the next use")
    finding = "nobody has authorized it"
    if state is GrantState.ENDED:
        finding = "its access token has ended, and cannot be renewed"
    return warning(server.name, _said(server, finding), _AUTHORIZE)


def _compared(server: _Server, listing: McpListing | None, more: str = "") -> Check:
    """Compare what was accepted with what a server lists now, or listed last."""
    statuses = {
        tool.name: tool.status
        for tool in server.stored.tools
        if tool.tool_id or tool.status != "removed"
    }
    if listing is not None:
        statuses = _statuses_now(server, listing)
    counts = Counter(statuses.values())
    stale = sorted(name for name, status in statuses.items() if status in {"changed", "removed"})
    if stale:
        finding = f"defined in another way, or not at all: {_named(stale)}"
        advice = (
            "Calls of them are refused: `POST /mcp-servers/{id}/refresh`, look at the new "
            "definitions, and accept them."
        )
        return warning(server.name, _said(server, finding), advice)
    if counts["pending"]:
        new = [name for name, status in statuses.items() if status == "pending"]
        advice = "Look at them and accept them: `POST /mcp-servers/{id}/tools/{name}/accept`."
        return warning(server.name, _said(server, f"wait for acceptance: {_named(new)}"), advice)
    was = "reachable" if listing is not None else "not asked"
    return ok(server.name, f"{was}, {counts['accepted']} tools accepted{more}")


def _statuses_now(server: _Server, listing: McpListing) -> dict[str, str]:
    """Return the status of each tool by the definitions of `listing`."""
    known = {tool.name: tool for tool in server.stored.tools}
    allowed = server.stored.settings["allowed_tools"]
    statuses = {name: "removed" for name, tool in known.items() if tool.tool_id}
    for tool in listing.tools:
        kept, problem = listed_definition(tool)
        name = kept["name"]
        if allowed is not None and name not in allowed:
            continue
        stored = known.get(name)
        if stored is None or stored.tool_id is None:
            statuses[name] = "unusable" if problem else "pending"
        elif stored.sha256 != definition_sha256(kept) or stored.status == "changed":
            statuses[name] = "changed"
        else:
            statuses[name] = stored.status
    return statuses


def _is_authorized_by_person(server: _Server) -> bool:
    oauth = server.stored.settings["oauth"]
    return bool(oauth) and oauth["grant"] == "authorization_code"


def _said(server: _Server, finding: str) -> str:
    return f"{server.stored.id}: {finding}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
