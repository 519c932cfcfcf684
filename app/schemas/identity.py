"""Schemas of API keys, session tokens, workspaces and the audit log."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, StringConstraints

from app.core.security import CallerKind, Permission
from app.models import utc_now
from app.schemas.base import Name, Request, Response, omit_defaults

KeyId = Annotated[str, StringConstraints(pattern="^[0-9A-Za-z]{8}$")]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Amount = Annotated[float, Field(ge=0, le=1e9)]
Scopes = Annotated[list[Permission], Field(min_length=1, max_length=len(Permission))]


def _refuse_past(moment: datetime) -> datetime:
    if moment <= utc_now():
        raise ValueError("must be in the future")
    if moment.year > 9000:  # noqa: PLR2004  # no time zone can shift it past the year 9999
        raise ValueError("must be before the year 9000")
    return moment.astimezone(UTC)


Future = Annotated[AwareDatetime, AfterValidator(_refuse_past)]


class LimitsRequest(Request):
    """Limits of a caller; `null` or left out: the server's default."""

    requests_per_minute: Count | None = None
    concurrent_turns: Count | None = None
    upload_minutes_per_day: Amount | None = None
    tokens_per_day: Count | None = None
    usd_per_day: Amount | None = None


class KeyCreate(LimitsRequest):
    """A new key. Without `expires_at` it lives until it is revoked, or as long as its maker."""

    user_limits: LimitsRequest | None = Field(
        default=None, description="The limits of each end user that the key serves."
    )
    name: Name = Field(examples=["backend"])
    scopes: Scopes = Field(
        examples=[["sessions:read", "sessions:write", "turns:read", "turns:write"]]
    )
    expires_at: Future | None = None


class KeyUpdate(LimitsRequest):
    """Any subset of these; a limit that is `null` is the server's default again."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra=omit_defaults)

    user_limits: LimitsRequest | None = None
    name: Name = Field(default="", validate_default=False)
    scopes: Scopes = Field(default_factory=list[Permission])
    expires_at: Future | None = Field(
        default=None, description="`null`: until it is revoked, or as long as its maker."
    )


class KeyRotate(Request):
    """The seconds for which the old secret remains valid; 0 revokes it at once."""

    grace_seconds: Annotated[int, Field(ge=0, le=30 * 86400)] = 86400


class LimitsRead(Response):
    """Limits; `null` is the server's default, 0 is no limit."""

    requests_per_minute: int | None = None
    concurrent_turns: int | None = None
    upload_minutes_per_day: float | None = None
    tokens_per_day: int | None = None
    usd_per_day: float | None = None


class KeyRead(Response):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    created_by: str
    parent_id: str | None
    expires_at: datetime | None
    rotated_at: datetime | None
    previous_expires_at: datetime | None
    revoked_at: datetime | None
    requests_per_minute: int | None
    concurrent_turns: int | None
    upload_minutes_per_day: float | None
    tokens_per_day: int | None
    usd_per_day: float | None
    user_limits: LimitsRead | None


class KeyWithSecret(KeyRead):
    """A key with its secret, which is shown only in this response."""

    key: str


class TokenCreate(Request):
    """The lifetime of a new session token in seconds."""

    ttl_seconds: Annotated[int, Field(ge=10, le=3600)] = 900


class TokenRead(Response):
    """A session token, which is shown only in this response."""

    token: str
    session_id: UUID
    expires_at: datetime


class WorkspaceCreate(Request):
    """A new workspace."""

    name: Name = Field(examples=["staging"])


class WorkspaceRead(Response):
    """A workspace: it has its own agents, sessions and keys, isolated from other workspaces."""

    id: UUID
    name: str
    created_at: datetime


class AuditRead(Response):
    """An entry of the audit log: who did what, and when."""

    id: UUID
    created_at: datetime
    actor: str
    action: str
    target_id: str
    details: dict[str, Any]


class CallerRead(Response):
    """Who the caller is. `scopes` are what it may do, as far as its kind may."""

    kind: CallerKind
    workspace_id: UUID
    workspace_name: str
    key_id: str | None
    key_name: str | None
    user_id: str | None
    session_id: UUID | None
    scopes: list[Permission]
    has_credential: bool = Field(
        description="False for the admin key, and for requests of the server's own machine."
    )
    expires_at: datetime | None
