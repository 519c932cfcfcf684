"""Who owns what and who comes in: workspaces, keys, session tokens, and the log of it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, Record, new_id, utc_now


class Workspace(Base):
    """The owner of agents, sessions and keys; nothing crosses it."""

    __tablename__ = "workspaces"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ApiKey(Base):
    """A key, without its secret. It is found by its id alone, before the workspace is known."""

    __tablename__ = "api_keys"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        Index(None, "workspace_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    workspace_id: Mapped[UUID]
    name: Mapped[str] = mapped_column(String(200))
    scopes: Mapped[list[str]] = mapped_column(Json())
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    """SHA-256 of the whole key."""
    previous_secret_hash: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    """What it was before it was rotated: good until `previous_expires_at`."""
    previous_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    created_by: Mapped[str] = mapped_column(String(256))
    rotated_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    requests_per_minute: Mapped[int | None]
    concurrent_turns: Mapped[int | None]
    upload_minutes_per_day: Mapped[float | None]
    tokens_per_day: Mapped[int | None]
    usd_per_day: Mapped[float | None]


class SessionToken(Base):
    """What a browser may hold: opens one session for minutes, and goes with it."""

    __tablename__ = "session_tokens"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(["key_id"], [f"{SCHEMA}.api_keys.id"]),
        Index(None, "workspace_id", "session_id"),
        Index(None, "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    workspace_id: Mapped[UUID]
    session_id: Mapped[UUID]
    key_id: Mapped[str | None] = mapped_column(String(8))
    """The key that asked for it: its limits count, and the token ends with it."""
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class AuditEntry(Record):
    """Who did what. Rows are only ever added: the migration's triggers refuse the rest."""

    __tablename__ = "audit_log"
    __table_args__ = (ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),)

    actor: Mapped[str] = mapped_column(String(256))
    action: Mapped[str] = mapped_column(String(64))
    target_id: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    """Names of what was changed, never what was said."""
