"""Who asks and what they may: callers, permissions, and the admin key."""

import hashlib
import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from pydantic import SecretStr

from app.core.errors import AppError, ErrorKind
from app.core.limits import DEFAULT_LIMITS, Limits

DEFAULT_WORKSPACE_ID = UUID("01900000-0000-7000-8000-000000000001")
"""The workspace that the first migration creates; the admin key's requests use it by default."""


class Unauthenticated(AppError):
    """A key is needed."""

    kind = ErrorKind.UNAUTHENTICATED
    code = "unauthenticated"
    reason: str | None = None
    """What was wrong, for the log alone: who tries keys must not learn from it."""


def unauthenticated(reason: str = "refused") -> Unauthenticated:
    """Return the same error for every problem with a key; `reason` is for the log alone."""
    error = Unauthenticated(
        "Send a valid key as `Authorization: Bearer <key>`. Without a key, only requests from the "
        "server's own machine to a loopback address are served, and only in development."
    )
    error.reason = reason
    return error


class Forbidden(AppError):
    """The caller may not do this."""

    kind = ErrorKind.FORBIDDEN
    code = "forbidden"


class Permission(StrEnum):
    """The scopes that a key can have; each endpoint requires one."""

    AGENTS_READ = "agents:read"
    AGENTS_WRITE = "agents:write"
    SESSIONS_READ = "sessions:read"
    SESSIONS_WRITE = "sessions:write"
    TURNS_READ = "turns:read"
    TURNS_WRITE = "turns:write"
    APPROVALS_WRITE = "approvals:write"
    """Calls of tools that an operator must approve."""
    USAGE_READ = "usage:read"
    USAGE_WRITE = "usage:write"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    TOOLS_READ = "tools:read"
    TOOLS_WRITE = "tools:write"
    """Tools and the secrets that they send."""
    FILES_READ = "files:read"
    FILES_WRITE = "files:write"
    METRICS_READ = "metrics:read"
    """Figures of the whole server, of every workspace."""


ALL_PERMISSIONS = frozenset(Permission)


class CallerKind(StrEnum):
    """How the caller was authenticated."""

    ADMIN = "admin"
    KEY = "key"
    USER = "user"
    """An end user, with an access token of the identity provider."""
    SESSION_TOKEN = "session-token"  # noqa: S105  # a name
    CLIENT_SECRET = "client-secret"  # noqa: S105  # a name
    """Opens lines of live voice, and nothing else."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller of a request: its workspace, scopes, limits and visible sessions.

    With a workspace alone it is the server itself or its admin, who may use everything in it.
    """

    workspace_id: UUID
    kind: CallerKind = CallerKind.ADMIN
    permissions: frozenset[Permission] = ALL_PERMISSIONS
    key_id: str | None = None
    """The id of the key; for a session token, of the key that created it."""
    user_id: str | None = None
    """Set for an end user, who sees only their own sessions; others are answered with 404."""
    session_id: UUID | None = None
    """Set for a session token, which sees only this session; others are answered with 404."""
    session_user_id: str | None = None
    """The end user of a session token's session."""
    limits: Limits = DEFAULT_LIMITS
    user_limits: Limits | None = None
    """Of each end user that the key serves; `None` is the default of the settings."""
    ancestors: tuple[tuple[str, Limits], ...] = ()
    """The keys that the key descends from, whose limits count, too; its maker first."""
    expires_at: float | None = None
    """Seconds since 1970."""
    credential: "PresentedCredential | None" = field(default=None, repr=False)
    """The presented key or token, which is checked again while a stream is open."""

    @property
    def identity(self) -> tuple[UUID, str | None, str | None, UUID | None]:
        """What is the same in all requests of one caller, and different between callers."""
        return self.workspace_id, self.key_id, self.user_id, self.session_id

    @property
    def sees_all_sessions(self) -> bool:
        """True if the caller sees every session of the workspace."""
        return self.user_id is None and self.session_id is None

    @property
    def actor(self) -> str:
        """The caller's name in the audit log; it contains no secret."""
        match self.kind:
            case CallerKind.ADMIN:
                return "admin"
            case CallerKind.USER:
                return f"user:{self.user_id}"
            case CallerKind.KEY:
                return f"key:{self.key_id}"
            case _:
                return f"{self.kind}:{self.credential.id if self.credential else self.key_id}"


@dataclass(frozen=True, slots=True)
class PresentedCredential:
    """A well-formed key or token of a request, before it is looked up."""

    prefix: str
    id: str
    digest: bytes
    """SHA-256 of the whole key or token."""


ADMIN = Caller(DEFAULT_WORKSPACE_ID)


class AdminKey:
    """The admin key, which allows everything in every workspace."""

    def __init__(self, key: SecretStr) -> None:
        self._key = key.get_secret_value().encode()

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        return hashlib.sha256(self._key).digest()

    def has_digest(self, digest: bytes) -> bool:
        """Compare a SHA-256 with that of the key in constant time."""
        return hmac.compare_digest(self.digest, digest)

    def matches(self, presented: bytes) -> bool:
        """Compare with the presented key in constant time."""
        return hmac.compare_digest(self._key, presented)
