"""Tables for workspaces, API keys, session tokens and the audit log."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, Record, new_id, utc_now


class Workspace(Base):
    """A tenant: it owns agents, sessions and keys, and sees nothing of other workspaces."""

    __tablename__ = "workspaces"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ApiKey(Base):
    """An API key, without its secret. It is looked up by id alone, which yields the workspace."""

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
    """The hash of the key before its rotation, which is valid until `previous_expires_at`."""
    previous_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    created_by: Mapped[str] = mapped_column(String(256))
    parent_id: Mapped[str | None] = mapped_column(String(8))
    """The key that made it, whose limits count for it, too, and with which it ends."""
    rotated_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    requests_per_minute: Mapped[int | None]
    concurrent_turns: Mapped[int | None]
    upload_minutes_per_day: Mapped[float | None]
    tokens_per_day: Mapped[int | None]
    usd_per_day: Mapped[float | None]
    user_limits: Mapped[dict[str, Any] | None] = mapped_column(Json())
    """The limits of each end user that it serves; `None` means the settings' defaults."""


class SessionToken(Base):
    """A short-lived token for browsers that gives access to one session."""

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
    """The key that created it: its limits apply, and the token becomes invalid with it."""
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class ClientSecret(Base):
    """A short-lived credential that opens lines of live voice, and nothing else."""

    __tablename__ = "client_secrets"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        ForeignKeyConstraint(["key_id"], [f"{SCHEMA}.api_keys.id"]),
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        Index(None, "expires_at"),
        Index(None, "workspace_id", "session_id"),
    )

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    workspace_id: Mapped[UUID]
    key_id: Mapped[str | None] = mapped_column(String(8))
    """The key that made it, with which its lines end."""
    session_id: Mapped[UUID | None]
    """The session of its lines; `None` where each opens one."""
    user_id: Mapped[str | None] = mapped_column(String(200))
    """The end user to whom these sessions belong."""
    configuration: Mapped[dict[str, Any]] = mapped_column(Json())
    """The settings of its lines, as in `session.update`; `model` is the agent."""
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class ConsoleSession(Base):
    """A browser that is signed in with a key; its cookie has the secret."""

    __tablename__ = "console_sessions"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        ForeignKeyConstraint(["key_id"], [f"{SCHEMA}.api_keys.id"]),
        Index(None, "expires_at"),
    )

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    workspace_id: Mapped[UUID]
    key_id: Mapped[str | None] = mapped_column(String(8))
    """`None` for the admin key."""
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    credential_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    """Of the key that signed in: the session ends when that is rotated or replaced."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class AuditEntry(Record):
    """An entry of the audit log. Triggers of the migration refuse updates and deletes."""

    __tablename__ = "audit_log"
    __table_args__ = (ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),)

    actor: Mapped[str] = mapped_column(String(256))
    action: Mapped[str] = mapped_column(String(64))
    target_id: Mapped[str] = mapped_column(String(64))
    details: Mapped[dict[str, Any]] = mapped_column(Json(), default=dict)
    """The names of changed fields, never their content."""
