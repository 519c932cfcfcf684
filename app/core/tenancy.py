"""Which workspace a transaction is for: on Postgres, row policies let it see no other.

The second lock behind the queries' own conditions. What serves one caller runs inside `only`;
what serves all (leases, upkeep, the door, the command line) is outside, or says `service_wide`.
"""

import time
from contextlib import AbstractContextManager
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


class _Inside:
    """Says so while the block runs; a generator would cost five times as much."""

    __slots__ = ("_token", "_words")

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None:
        self._token = _workspace.set(self._words)

    def __exit__(self, *_error: object) -> None:
        _workspace.reset(self._token)


def only(workspace_id: UUID) -> AbstractContextManager[None]:
    """Confine the transactions inside, and in tasks that are started inside, to a workspace."""
    return _Inside(str(workspace_id))


def service_wide() -> AbstractContextManager[None]:
    """Let the transactions inside see every workspace."""
    return _Inside(_EVERY)


class Confinement:
    """How a database's transactions begin on Postgres."""

    def __init__(self, *, is_there: bool = True) -> None:
        """`is_there` is false for SQLite, which has neither roles nor policies."""
        self._is_there = is_there
        self._has_role = False
        self._looked_at = -_LOOK_AGAIN_SECONDS

    @property
    def wants_to_know(self) -> bool:
        """True where it should be looked up whether the role is there: see `learn`."""
        if self._has_role or not self._is_there:
            return False
        return time.monotonic() - self._looked_at > _LOOK_AGAIN_SECONDS

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
