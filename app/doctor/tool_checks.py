"""Secrets and the tools that use them: keys that open them, hosts, addresses that are allowed."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import AppEnv, Settings
from app.core.database import Database
from app.core.errors import AppError, StartRefused
from app.core.hosts import is_bound_to
from app.doctor.checks import Check, broken, has_broken, ok, warning
from app.doctor.mcp_checks import check_mcp_servers, check_programs
from app.models import StoredSecret, Tool, ToolVersion
from app.providers import outbound_of
from app.services.outbound_port import Outbound
from app.services.tool_ports import ToolKind
from app.services.tools.definitions import url_without_arguments
from app.services.tools.key_ring import SECRETS_KEY_FILE, KeyRing
from app.services.tools.secrets import used_key_ids

_MOST_NAMED = 20
"""Tools with a fault, each a line; the others are counted."""
_NO_KEY = (
    "Set SECRETS_KEY to the key that they were stored with, or put back the file secrets.key of "
    "the data folder; without it store each secret again."
)
Hosts = Mapping[tuple[UUID, str], Sequence[str]]
"""Of secrets, by workspace and name."""


def check_tool_settings(settings: Settings) -> Sequence[Check]:
    """Look at the settings of tools, and at the operator's MCP programs; nothing is started."""
    try:
        outbound_of(settings)
    except StartRefused as error:
        return [broken("tools", str(error), "The server does not start with it: change it.")]
    return check_programs(settings)


async def check_tools(settings: Settings, database: Database) -> Sequence[Check]:
    """Look at the secrets, tools and MCP servers of every workspace; nothing is made or changed.

    The database has to be at this version's revision. MCP servers are asked for their tools.
    """
    async with database.reading() as db:
        used_keys = await used_key_ids(db)
        faults, tools_count = await _tools_with_faults(db, outbound_of(settings))
    checks = [_keys(settings, used_keys)] if used_keys else []
    if tools_count and not faults:
        checks.append(ok("tools", f"{tools_count}, each with its secrets and an allowed address"))
    checks += faults[:_MOST_NAMED]
    if len(faults) > _MOST_NAMED:
        more = f"{len(faults) - _MOST_NAMED} more have such a fault"
        checks.append(warning("tools", more, "Run it again once these are mended."))
    if has_broken(checks):
        return checks  # no server's secrets could be opened
    return [*checks, *await check_mcp_servers(settings, database)]


def _keys(settings: Settings, used: frozenset[str]) -> Check:
    name = "secrets"
    has_file = (settings.data_dir / SECRETS_KEY_FILE).exists()
    may_have_file = settings.app_env is AppEnv.DEVELOPMENT and has_file
    if not (settings.secrets_keys or may_have_file):
        return broken(name, "the key that opens them is missing", _NO_KEY)
    try:
        sealer = KeyRing.from_settings(settings).sealer()
    except AppError:
        return broken(name, "the file of their key cannot be used", _NO_KEY)
    if not used <= sealer.key_ids:
        return broken(name, "some were stored with a key that is not known", _NO_KEY)
    if used - {sealer.key_id}:
        advice = "Run `agent-platform secrets rotate`, and remove the old key afterwards."
        return warning(name, "some are still under an older key of SECRETS_KEY", advice)
    return ok(name, "the key that opens them is known")


async def _tools_with_faults(db: AsyncSession, outbound: Outbound) -> tuple[list[Check], int]:
    """Return a check for each `http` tool that cannot be called, and how many there are."""
    secrets = await db.execute(
        select(StoredSecret.workspace_id, StoredSecret.name, StoredSecret.hosts)
    )
    hosts: Hosts = {(workspace, name): own for workspace, name, own in secrets}
    versions = await db.execute(
        select(Tool.workspace_id, Tool.id, Tool.secret_names, ToolVersion.definition)
        .join(
            ToolVersion,
            (ToolVersion.workspace_id == Tool.workspace_id)
            & (ToolVersion.tool_id == Tool.id)
            & (ToolVersion.version == Tool.version),
        )
        .where(Tool.archived_at.is_(None), Tool.mcp_server_id.is_(None))
        .order_by(Tool.workspace_id, Tool.id)
    )
    checks: list[Check] = []
    count = 0
    for workspace_id, tool_id, names, definition in versions:
        if definition["kind"] != ToolKind.HTTP:
            continue
        count += 1
        url = url_without_arguments(definition["http"]["url"])
        found = _fault(workspace_id, names, url, hosts, outbound)
        if found:
            checks.append(warning(f"tool {definition['name']}", f"{tool_id}: {found[0]}", found[1]))
    return checks, count


def _fault(
    workspace_id: UUID, names: Iterable[str], url: str, hosts: Hosts, outbound: Outbound
) -> tuple[str, str] | None:
    """Return what is wrong with a tool and what to do; `None` where nothing is."""
    if refusal := outbound.refusal_of(url):
        return f"{url} may not be called", f"{refusal} See TOOLS_ALLOWED_ADDRESSES."
    for name in sorted(names):
        own = hosts.get((workspace_id, name))
        if own is None:
            return f"the secret {name} does not exist", f"Store {name} with `POST /secrets`."
        if not is_bound_to(own, url):
            advice = f"Store {name} again with the host among its `hosts`, or change the URL."
            return f"the secret {name} may not be sent to {url}", advice
    return None
