"""What clients send and receive about keys, session tokens, workspaces and the audit log."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, Field

from app.core.security import Permission
from app.models import utc_now
from app.schemas.base import Name, Request, Response

Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Amount = Annotated[float, Field(ge=0, le=1e9)]


def _refuse_past(moment: datetime) -> datetime:
    if moment <= utc_now():
        raise ValueError("must be in the future")
    if moment.year > 9000:  # noqa: PLR2004  # no zone may carry it beyond what can be stored
        raise ValueError("must be before the year 9000")
    return moment


Future = Annotated[AwareDatetime, AfterValidator(_refuse_past)]


class Limits(Request):
    """What a key may use; `null` or left out: the server's default."""

    requests_per_minute: Count | None = None
    concurrent_turns: Count | None = None
    upload_minutes_per_day: Amount | None = None
    tokens_per_day: Count | None = None
    usd_per_day: Amount | None = None


class KeyCreate(Limits):
    """A new key. Without `expires_at` it lives until it is revoked, or as long as its maker."""

    name: Name = Field(examples=["backend"])
    scopes: Annotated[list[Permission], Field(min_length=1, max_length=len(Permission))] = Field(
        examples=[["sessions:read", "sessions:write", "turns:read", "turns:write"]]
    )
    expires_at: Future | None = None


class KeyRotate(Request):
    """How long the secret before this one stays good; 0 ends it at once."""

    grace_seconds: Annotated[int, Field(ge=0, le=30 * 86400)] = 86400


class KeyRead(Response):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    rotated_at: datetime | None
    previous_expires_at: datetime | None
    revoked_at: datetime | None
    requests_per_minute: int | None
    concurrent_turns: int | None
    upload_minutes_per_day: float | None
    tokens_per_day: int | None
    usd_per_day: float | None


class KeyWithSecret(KeyRead):
    """A key at the one time when it is shown whole."""

    key: str


class TokenCreate(Request):
    """How long a session token lives."""

    ttl_seconds: Annotated[int, Field(ge=10, le=3600)] = 900


class TokenRead(Response):
    """A session token at the one time when it is shown."""

    token: str
    session_id: UUID
    expires_at: datetime


class WorkspaceCreate(Request):
    """A new workspace."""

    name: Name = Field(examples=["staging"])


class WorkspaceRead(Response):
    """A workspace: nothing crosses it."""

    id: UUID
    name: str
    created_at: datetime


class AuditRead(Response):
    """Who did what, and when."""

    id: UUID
    created_at: datetime
    actor: str
    action: str
    target_id: str
    details: dict[str, Any]
