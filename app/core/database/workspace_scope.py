"""The workspace of the current transactions, for row-level security on Postgres.

It is a second barrier behind the queries' own conditions. Work for one caller runs inside
`workspace_scope`; work for all workspaces (leases, maintenance, authentication, the command line)
runs outside of it, or inside `all_workspaces`.
"""

import time
from contextlib import AbstractContextManager
from contextvars import ContextVar
from uuid import UUID

APP_ROLE = "agent_platform_app"
"""The role of transactions. It owns no table, so no policy is bypassed; migrations create it."""
_SETTING = "agent_platform.workspace_id"
_ALL_WORKSPACES = "*"
_workspace: ContextVar[str] = ContextVar("workspace", default=_ALL_WORKSPACES)
_ROLE_LOOKUP_SECONDS = 5.0

ROLE_EXISTS_SQL = f"""
SELECT true FROM pg_roles r, pg_namespace n
WHERE r.rolname = '{APP_ROLE}' AND n.nspname = 'agent_platform'
AND pg_has_role(r.oid, 'MEMBER') AND has_schema_privilege(r.oid, n.oid, 'USAGE')
"""  # noqa: S608  # constants


class _WorkspaceScope:
    """Sets the workspace while the block runs; `contextmanager` would cost five times as much."""

    __slots__ = ("_token", "_workspace")

    def __init__(self, workspace: str) -> None:
        self._workspace = workspace

    def __enter__(self) -> None:
        self._token = _workspace.set(self._workspace)

    def __exit__(self, *_error: object) -> None:
        _workspace.reset(self._token)


def workspace_scope(workspace_id: UUID) -> AbstractContextManager[None]:
    """Limit transactions in the block, and in tasks started in it, to one workspace."""
    return _WorkspaceScope(str(workspace_id))


def all_workspaces() -> AbstractContextManager[None]:
    """Let transactions in the block see every workspace."""
    return _WorkspaceScope(_ALL_WORKSPACES)


class RowLevelSecurity:
    """The settings that turn row-level security on at the start of a Postgres transaction."""

    def __init__(self, *, is_supported: bool = True) -> None:
        """`is_supported` is false for SQLite, which has neither roles nor policies."""
        self._is_supported = is_supported
        self._has_role = False
        self._looked_at = -_ROLE_LOOKUP_SECONDS

    @property
    def needs_role_lookup(self) -> bool:
        """True if the role was not found yet and was not looked up in the last 5 s."""
        if self._has_role or not self._is_supported:
            return False
        return time.monotonic() - self._looked_at > _ROLE_LOOKUP_SECONDS

    def set_has_role(self, *, has_role: bool) -> None:
        """Store whether the role exists and transactions may switch to it."""
        self._has_role = has_role
        self._looked_at = time.monotonic()

    def begin_settings(self) -> str:
        """Return the SQL that follows BEGIN, for the current workspace."""
        # The value is `*` or a formatted UUID, so it needs no parameter.
        setting = f"SET LOCAL {_SETTING} = '{_workspace.get()}'"
        return f"{setting}; SET LOCAL ROLE {APP_ROLE}" if self._has_role else setting

    def settings_query(self) -> str:
        """Return the settings as one SELECT, for drivers that run one statement at a time."""
        setting = f"SELECT set_config('{_SETTING}', '{_workspace.get()}', true)"
        return f"{setting}, set_config('role', '{APP_ROLE}', true)" if self._has_role else setting
