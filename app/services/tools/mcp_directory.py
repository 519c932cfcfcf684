"""Asks MCP servers what they offer, for whoever sets them up."""

from collections.abc import Sequence
from uuid import UUID

from app.core.database import Database
from app.services.mcp_port import McpClient, McpError, McpListing, McpTarget
from app.services.tools.errors import ToolInvalid
from app.services.tools.key_ring import KeyRing
from app.services.tools.mcp_definitions import ServerSettings
from app.services.tools.mcp_failures import request_error
from app.services.tools.mcp_oauth import McpAuthorizer
from app.services.tools.secret_store import SecretStore
from app.services.tools.templates import HIDDEN_VALUES, ArgumentUnusable, fill_header

_LIST_SECONDS = 30.0


class McpDirectory:
    """Lists the tools of servers."""

    def __init__(
        self, database: Database, client: McpClient, secrets: SecretStore, keys: KeyRing
    ) -> None:
        self._client = client
        self._secrets = secrets
        self.authorizer = McpAuthorizer(database, client, secrets, keys)

    def require_program(self, settings: ServerSettings) -> None:
        """Raise `ToolInvalid` where the operator has no such program."""
        program = settings["program"]
        if program is not None and program not in self._client.programs():
            raise ToolInvalid("The operator's file MCP_SERVERS_FILE names no program like this.")

    async def list_tools(
        self,
        workspace_id: UUID,
        settings: ServerSettings,
        secret_names: Sequence[str],
        server_id: UUID | None = None,
    ) -> McpListing:
        """Connect to a server and list its tools; outside of a transaction.

        `server_id` is `None` for a server that is not stored yet.

        Raises `McpUnreachable`, `McpUnauthorized`, `McpIncompatible`, `AddressNotAllowed`,
        `McpBusy`, `McpUnavailable`, `ToolInvalid`, and what the secrets raise.
        """
        values = await self._secrets.values(workspace_id, secret_names, settings["url"] or "")
        hidden = dict.fromkeys(HIDDEN_VALUES, "") | {
            f"secrets.{name}": value for name, value in values.items()
        }
        try:
            headers = {
                name: fill_header(text, hidden) for name, text in settings["headers"].items()
            }
        except ArgumentUnusable as error:
            raise ToolInvalid(f"`headers` cannot be sent: {error}.") from None
        headers |= await self.authorizer.headers(workspace_id, server_id, settings)
        target = McpTarget(workspace_id, settings["url"], headers, settings["program"])
        try:
            return await self._client.list_tools(target, _LIST_SECONDS)
        except McpError as error:
            raise request_error(error, "The MCP server was not listed.") from None
