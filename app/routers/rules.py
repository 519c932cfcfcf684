"""Who may do what: one line for each endpoint. An endpoint without one serves the admin alone.

`users`: end users too, who see only their own sessions. `tokens`: session tokens too, which
see only theirs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from app.core.security import Caller, CallerKind, Forbidden, Permission

P = Permission


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may use an endpoint: keys with `permission`; without one, the admin alone."""

    permission: Permission | None
    users: bool = False
    tokens: bool = False

    def check(self, caller: Caller) -> None:
        """Raise `Forbidden` where the caller is not one of those."""
        match caller.kind:
            case CallerKind.ADMIN:
                return
            case CallerKind.USER:
                is_allowed = self.users
            case CallerKind.SESSION_TOKEN:
                is_allowed = self.tokens
            case CallerKind.KEY:
                is_allowed = True
        if self.permission is None or not is_allowed:
            raise Forbidden("This kind of key or token cannot be used here.")
        if self.permission not in caller.permissions:
            raise Forbidden(f"This needs the scope `{self.permission}`.")


ADMIN_ONLY = Rule(None)

RULES: dict[tuple[str, str], Rule] = {
    ("POST", "/agents"): Rule(P.AGENTS_WRITE),
    ("GET", "/agents"): Rule(P.AGENTS_READ, users=True),
    ("GET", "/agents/{agent_id}"): Rule(P.AGENTS_READ, users=True),
    ("PUT", "/agents/{agent_id}"): Rule(P.AGENTS_WRITE),
    ("DELETE", "/agents/{agent_id}"): Rule(P.AGENTS_WRITE),
    ("GET", "/agents/{agent_id}/versions"): Rule(P.AGENTS_READ),
    ("POST", "/agents/{agent_id}/versions/{version}/restore"): Rule(P.AGENTS_WRITE),
    ("POST", "/sessions"): Rule(P.SESSIONS_WRITE, users=True),
    ("GET", "/sessions"): Rule(P.SESSIONS_READ, users=True),
    ("GET", "/sessions/{session_id}"): Rule(P.SESSIONS_READ, users=True, tokens=True),
    ("PATCH", "/sessions/{session_id}"): Rule(P.SESSIONS_WRITE, users=True),
    ("DELETE", "/sessions/{session_id}"): Rule(P.SESSIONS_WRITE, users=True),
    ("GET", "/sessions/{session_id}/messages"): Rule(P.SESSIONS_READ, users=True, tokens=True),
    ("POST", "/sessions/{session_id}/fork"): Rule(P.SESSIONS_WRITE, users=True),
    ("GET", "/sessions/{session_id}/export"): Rule(P.SESSIONS_READ, users=True),
    ("POST", "/sessions/{session_id}/tokens"): Rule(P.SESSIONS_WRITE),
    ("POST", "/messages/text"): Rule(P.TURNS_WRITE, users=True, tokens=True),
    ("POST", "/messages/voice"): Rule(P.TURNS_WRITE, users=True, tokens=True),
    ("GET", "/turns/{turn_id}"): Rule(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/turns/{turn_id}/events"): Rule(P.TURNS_READ, users=True, tokens=True),
    ("GET", "/turns/{turn_id}/audio"): Rule(P.TURNS_READ, users=True, tokens=True),
    ("POST", "/turns/{turn_id}/cancel"): Rule(P.TURNS_WRITE, users=True, tokens=True),
    ("POST", "/keys"): Rule(P.KEYS_WRITE),
    ("GET", "/keys"): Rule(P.KEYS_READ),
    ("GET", "/keys/{key_id}"): Rule(P.KEYS_READ),
    ("DELETE", "/keys/{key_id}"): Rule(P.KEYS_WRITE),
    ("POST", "/keys/{key_id}/rotate"): Rule(P.KEYS_WRITE),
    ("GET", "/usage"): Rule(P.USAGE_READ, users=True),
    ("GET", "/audit"): Rule(P.KEYS_READ),
    ("POST", "/workspaces"): ADMIN_ONLY,
    ("GET", "/workspaces"): ADMIN_ONLY,
}

PUBLIC_PATHS = frozenset(("/health", "/health/live", "/health/ready"))
"""Served without a key."""
OPEN_TO_EVERY_CALLER = frozenset(("/docs", "/redoc", "/openapi.json", "/assets"))
"""Served to whoever has any key or token: they show nothing of a workspace."""


def rule_of(methods: Iterable[str], path: str) -> Rule:
    """Return the rule of an endpoint, which has one method."""
    rules = [RULES.get((method, path), ADMIN_ONLY) for method in methods]
    return rules[0] if len(rules) == 1 else ADMIN_ONLY
