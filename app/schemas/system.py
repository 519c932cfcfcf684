"""Schemas of the server's own state."""

from datetime import date
from typing import Literal

from pydantic import Field

from app.core.capabilities import Capability
from app.core.config import AppEnv
from app.schemas.base import Response


class DatabaseState(Response):
    """The database, which is at the revision that this version needs."""

    kind: Literal["sqlite", "postgresql"]
    revision: str


class ProviderState(Response):
    """Who serves a capability. `host` is `embedded` for the server's own models."""

    capability: Capability
    host: str
    model: str | None
    is_failing: bool = Field(
        description="True while requests are refused at once, since several failed in a row."
    )
    shutdown_date: date | None = Field(
        description="When OpenAI shuts the model down, as far as it was announced."
    )


class SystemLimits(Response):
    """Limits that are the same for every caller."""

    upload_bytes: int
    audio_retention_days: int
    idempotency_hours: int


class SystemRead(Response):
    """The state of the server that answers."""

    version: str
    environment: AppEnv
    database: DatabaseState
    providers: list[ProviderState]
    default_voice: str
    limits: SystemLimits
