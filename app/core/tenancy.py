"""Which workspace a transaction is for: on Postgres, row policies let it see no other.

The second lock behind the queries' own conditions. What serves one caller runs inside `only`;
what serves all (leases, upkeep, the door, the command line) is outside, or says `service_wide`.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from uuid import UUID

APP_ROLE = "agent_platform_app"
"""Owns nothing, so that no policy is passed over; made by the migrations."""
_SETTING = "agent_platform.workspace_id"
_EVERY = "*"
_workspace: ContextVar[str] = ContextVar("workspace", default=_EVERY)
_LOOK_AGAIN_SECONDS = 5.0

ROLE_IS_THERE = f"""
SELECT true FROM pg_roles r, pg_namespace n
WHERE r.rolname = '{APP_ROLE}' AND n.nspname = 'agent_platform'
AND pg_has_role(r.oid, 'MEMBER') AND has_schema_privilege(r.oid, n.oid, 'USAGE')
"""  # noqa: S608  # constants


@contextmanager
def only(workspace_id: UUID) -> Generator[None]:
    """Confine the transactions inside, and in tasks that are started inside, to a workspace."""
    token = _workspace.set(str(workspace_id))
    try:
        yield
    finally:
        _workspace.reset(token)


@contextmanager
def service_wide() -> Generator[None]:
    """Let the transactions inside see every workspace."""
    token = _workspace.set(_EVERY)
    try:
        yield
    finally:
        _workspace.reset(token)


class Confinement:
    """How a database's transactions begin on Postgres."""

    def __init__(self) -> None:
        self._has_role = False
        self._looked_at = -_LOOK_AGAIN_SECONDS

    @property
    def wants_to_know(self) -> bool:
        """True where it should be looked up whether the role is there: see `learn`."""
        return not self._has_role and time.monotonic() - self._looked_at > _LOOK_AGAIN_SECONDS

    def learn(self, *, has_role: bool) -> None:
        """Take note of whether transactions can take the role on."""
        self._has_role = has_role
        self._looked_at = time.monotonic()

    def words(self) -> str:
        """Return what follows BEGIN, for the workspace of the moment; no round trip of its own."""
        # The value is `*` or a UUID's own text, so it can be written into the statement.
        setting = f"SET LOCAL {_SETTING} = '{_workspace.get()}'"
        return f"{setting}; SET LOCAL ROLE {APP_ROLE}" if self._has_role else setting

    def query(self) -> str:
        """Return the same as one statement, for drivers that take one at a time."""
        setting = f"SELECT set_config('{_SETTING}', '{_workspace.get()}', true)"
        return f"{setting}, set_config('role', '{APP_ROLE}', true)" if self._has_role else setting
