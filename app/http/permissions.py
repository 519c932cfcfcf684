"""The access policy of each endpoint; an endpoint without one is for the admin key only.

`users=True` also allows end users, who see only their own sessions, and `tokens=True` also session
tokens, which see only their session.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from app.core.security import Caller, CallerKind, Forbidden, Permission
from app.http.console_files import CONSOLE_PATHS

P = Permission


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """Who may use an endpoint: keys with the scope `permission`; for `None` the admin key only."""

    permission: Permission | None
    users: bool = False
    tokens: bool = False
    any_scope: bool = False
    """Whether keys need no scope."""
    client_secrets: bool = False
    """Whether client secrets of live voice are enough."""

    def check(self, caller: Caller) -> None:
        """Raise `Forbidden` if the caller may not use the endpoint."""
        match caller.kind:
            case CallerKind.ADMIN:
                return
            case CallerKind.USER:
                is_allowed = self.users
            case CallerKind.SESSION_TOKEN:
                is_allowed = self.tokens
            case CallerKind.CLIENT_SECRET:
                is_allowed = self.client_secrets
            case CallerKind.KEY:
                is_allowed = True
        if is_allowed and self.any_scope:
            return
        if self.permission is None or not is_allowed:
            raise Forbidden("This kind of key or token cannot be used here.")
        if self.permission not in caller.permissions:
            raise Forbidden(f"This needs the scope `{self.permission}`.")


ADMIN_ONLY = EndpointPolicy(None)

ENDPOINT_POLICIES: dict[tuple[str, str], EndpointPolicy] = {
    ("POST", "/agents"): EndpointPolicy(P.AGENTS_WRITE),
    ("GET", "/agents"): EndpointPolicy(P.AGENTS_READ, users=True),
    ("GET", "/agents/{agent_id}"): EndpointPolicy(P.AGENTS_READ, users=True),
    ("PUT", "/agents/{agent_id}"): EndpointPolicy(P.AGENTS_WRITE),
    ("PATCH", "/agents/{agent_id}"): EndpointPolicy(P.AGENTS_WRITE),
    ("POST", "/agents/{agent_id}/unarchive"): EndpointPolicy(P.AGENTS_WRITE),
    ("DELETE", "/agents/{agent_id}"): EndpointPolicy(P.AGENTS_WRITE),
    ("GET", "/agents/{agent_id}/versions"): EndpointPolicy(P.AGENTS_READ),
    ("POST", "/agents/{agent_id}/versions/{version}/restore"): EndpointPolicy(P.AGENTS_WRITE),
    ("POST", "/sessions"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("GET", "/sessions"): EndpointPolicy(P.SESSIONS_READ, users=True),
    ("GET", "/sessions/export"): EndpointPolicy(P.SESSIONS_READ, users=True),
    ("GET", "/sessions/{session_id}"): EndpointPolicy(P.SESSIONS_READ, users=True, tokens=True),
    ("PATCH", "/sessions/{session_id}"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("DELETE", "/sessions/{session_id}"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("GET", "/sessions/{session_id}/messages"): EndpointPolicy(
        P.SESSIONS_READ, users=True, tokens=True
    ),
    ("GET", "/sessions/{session_id}/events"): EndpointPolicy(
        P.SESSIONS_READ, users=True, tokens=True
    ),
    ("POST", "/sessions/{session_id}/fork"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("GET", "/sessions/{session_id}/export"): EndpointPolicy(P.SESSIONS_READ, users=True),
    ("POST", "/sessions/{session_id}/tokens"): EndpointPolicy(P.SESSIONS_WRITE),
    ("POST", "/messages/text"): EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True),
    ("POST", "/messages/voice"): EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True),
    ("GET", "/turns"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/turns/{turn_id}"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/turns/{turn_id}/events"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/turns/{turn_id}/audio"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/turns/{turn_id}/recording"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("POST", "/turns/{turn_id}/retry"): EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True),
    ("POST", "/turns/{turn_id}/cancel"): EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True),
    ("GET", "/tool-calls"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/tool-calls/{call_id}"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("POST", "/tool-calls/{call_id}/resolution"): EndpointPolicy(
        P.TURNS_WRITE, users=True, tokens=True
    ),
    ("POST", "/keys"): EndpointPolicy(P.KEYS_WRITE),
    ("GET", "/keys"): EndpointPolicy(P.KEYS_READ),
    ("GET", "/keys/{key_id}"): EndpointPolicy(P.KEYS_READ),
    ("PATCH", "/keys/{key_id}"): EndpointPolicy(P.KEYS_WRITE),
    ("DELETE", "/keys/{key_id}"): EndpointPolicy(P.KEYS_WRITE),
    ("POST", "/keys/{key_id}/rotate"): EndpointPolicy(P.KEYS_WRITE),
    ("POST", "/tools"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/tools/import"): EndpointPolicy(P.TOOLS_WRITE),
    ("GET", "/tools"): EndpointPolicy(P.TOOLS_READ),
    ("GET", "/tools/{tool_id}"): EndpointPolicy(P.TOOLS_READ),
    ("PUT", "/tools/{tool_id}"): EndpointPolicy(P.TOOLS_WRITE),
    ("PATCH", "/tools/{tool_id}"): EndpointPolicy(P.TOOLS_WRITE),
    ("DELETE", "/tools/{tool_id}"): EndpointPolicy(P.TOOLS_WRITE),
    ("GET", "/tools/{tool_id}/versions"): EndpointPolicy(P.TOOLS_READ),
    ("POST", "/tools/{tool_id}/test"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/mcp-servers"): EndpointPolicy(P.TOOLS_WRITE),
    ("GET", "/mcp-servers"): EndpointPolicy(P.TOOLS_READ),
    ("GET", "/mcp-servers/{server_id}"): EndpointPolicy(P.TOOLS_READ),
    ("PUT", "/mcp-servers/{server_id}"): EndpointPolicy(P.TOOLS_WRITE),
    ("PATCH", "/mcp-servers/{server_id}"): EndpointPolicy(P.TOOLS_WRITE),
    ("DELETE", "/mcp-servers/{server_id}"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/mcp-servers/{server_id}/refresh"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/mcp-servers/{server_id}/authorization"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/mcp-servers/{server_id}/authorization/code"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/mcp-servers/{server_id}/tools/{name}/accept"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/secrets"): EndpointPolicy(P.TOOLS_WRITE),
    ("GET", "/secrets"): EndpointPolicy(P.TOOLS_READ),
    ("DELETE", "/secrets/{name}"): EndpointPolicy(P.TOOLS_WRITE),
    ("POST", "/files"): EndpointPolicy(P.FILES_WRITE, users=True, tokens=True),
    ("GET", "/files"): EndpointPolicy(P.FILES_READ, users=True, tokens=True),
    ("GET", "/files/{file_id}"): EndpointPolicy(P.FILES_READ, users=True, tokens=True),
    ("GET", "/files/{file_id}/content"): EndpointPolicy(P.FILES_READ, users=True, tokens=True),
    ("DELETE", "/files/{file_id}"): EndpointPolicy(P.FILES_WRITE, users=True, tokens=True),
    ("GET", "/usage"): EndpointPolicy(P.USAGE_READ, users=True),
    ("GET", "/usage/budgets"): EndpointPolicy(P.USAGE_READ, users=True),
    ("GET", "/me"): EndpointPolicy(None, users=True, tokens=True, any_scope=True),
    ("GET", "/system"): EndpointPolicy(P.USAGE_READ),
    ("POST", "/console/session"): EndpointPolicy(None, any_scope=True),
    ("DELETE", "/console/session"): EndpointPolicy(None, any_scope=True),
    ("DELETE", "/users/{user_id}"): EndpointPolicy(P.SESSIONS_WRITE),
    ("GET", "/audit"): EndpointPolicy(P.KEYS_READ),
    ("GET", "/v1/models"): EndpointPolicy(P.AGENTS_READ, users=True),
    ("GET", "/v1/models/{model}"): EndpointPolicy(P.AGENTS_READ, users=True),
    ("POST", "/v1/chat/completions"): EndpointPolicy(P.TURNS_WRITE, users=True),
    ("POST", "/v1/audio/transcriptions"): EndpointPolicy(P.TURNS_WRITE, users=True),
    ("POST", "/v1/audio/speech"): EndpointPolicy(P.TURNS_WRITE, users=True),
    ("POST", "/v1/realtime/client_secrets"): EndpointPolicy(P.TURNS_WRITE),
    ("POST", "/v1/responses"): EndpointPolicy(P.TURNS_WRITE, users=True),
    ("POST", "/api/chat"): EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True),
    ("GET", "/api/chat/{chat_id}/stream"): EndpointPolicy(P.TURNS_READ, users=True, tokens=True),
    ("DELETE", "/api/chat/{chat_id}/stream"): EndpointPolicy(
        P.TURNS_WRITE, users=True, tokens=True
    ),
    ("POST", "/agui/{agent}"): EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True),
    ("GET", "/v1/responses/{response_id}"): EndpointPolicy(P.TURNS_READ, users=True),
    ("DELETE", "/v1/responses/{response_id}"): EndpointPolicy(P.TURNS_WRITE, users=True),
    ("POST", "/v1/responses/{response_id}/cancel"): EndpointPolicy(P.TURNS_WRITE, users=True),
    ("GET", "/v1/responses/{response_id}/input_items"): EndpointPolicy(P.TURNS_READ, users=True),
    ("POST", "/v1/conversations"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("GET", "/v1/conversations/{conversation_id}"): EndpointPolicy(P.SESSIONS_READ, users=True),
    ("POST", "/v1/conversations/{conversation_id}"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("DELETE", "/v1/conversations/{conversation_id}"): EndpointPolicy(P.SESSIONS_WRITE, users=True),
    ("GET", "/v1/conversations/{conversation_id}/items"): EndpointPolicy(
        P.SESSIONS_READ, users=True
    ),
    ("POST", "/v1/conversations/{conversation_id}/items"): EndpointPolicy(
        P.SESSIONS_WRITE, users=True
    ),
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"): EndpointPolicy(
        P.SESSIONS_READ, users=True
    ),
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"): EndpointPolicy(
        P.SESSIONS_WRITE, users=True
    ),
    ("GET", "/metrics"): EndpointPolicy(P.METRICS_READ),
    ("POST", "/workspaces"): ADMIN_ONLY,
    ("GET", "/workspaces"): ADMIN_ONLY,
}

WEBSOCKET_POLICIES: dict[str, EndpointPolicy] = {
    "/v1/realtime": EndpointPolicy(P.TURNS_WRITE, users=True, tokens=True, client_secrets=True),
}

PUBLIC_PATHS = frozenset(("/health", "/health/live", "/health/ready")) | CONSOLE_PATHS
"""Served without a key."""
OPEN_TO_EVERY_CALLER = frozenset(("/docs", "/redoc", "/openapi.json", "/assets"))
"""Paths that accept every valid key or token, since they show no data of a workspace."""


def endpoint_policy(methods: Iterable[str], path: str) -> EndpointPolicy:
    """Return the policy of an endpoint with one method; with several, the admin key only."""
    rules = [ENDPOINT_POLICIES.get((method, path), ADMIN_ONLY) for method in methods]
    return rules[0] if len(rules) == 1 else ADMIN_ONLY
