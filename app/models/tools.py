"""Tables for tools, their versions, the agents that have them, and secrets."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, JsonText, Record, utc_now

NOT_ARCHIVED = "archived_at IS NULL"


class StoredSecret(Base):
    """A sealed value. Names with a slash are the server's own, such as `signing/<tool id>`."""

    __tablename__ = "secrets"
    __table_args__ = (ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),)

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str] = mapped_column(String(16))
    """Names the key that sealed it."""
    hosts: Mapped[list[str]] = mapped_column(Json())
    """The hosts that it may be sent to, each with an optional port."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class Tool(Record):
    """A tool at its newest version. An archived tool can be given to no agent."""

    __tablename__ = "tools"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        Index("uq_tools_name", "workspace_id", "name", unique=True, info={"where": NOT_ARCHIVED}),
    )

    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(default=1)
    secret_names: Mapped[list[str]] = mapped_column(Json())
    """The secrets that its newest version uses."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)
    archived_at: Mapped[datetime | None]
    mcp_server_id: Mapped[UUID | None]
    """The MCP server whose tool it is; `None` for tools that are defined here."""


class ToolVersion(Base):
    """A version of a tool, which never changes: one row for each, including the newest."""

    __tablename__ = "tool_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "tool_id"], [f"{SCHEMA}.tools.workspace_id", f"{SCHEMA}.tools.id"]
        ),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    tool_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    definition: Mapped[dict[str, Any]] = mapped_column(JsonText())
    """All that its owner set, with the defaults filled in."""
    shown_sha256: Mapped[str] = mapped_column(String(64))
    """Of name, description and parameters, which models see."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class AgentTool(Base):
    """A tool that the newest version of an agent has."""

    __tablename__ = "agent_tools"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "agent_id"], [f"{SCHEMA}.agents.workspace_id", f"{SCHEMA}.agents.id"]
        ),
        ForeignKeyConstraint(
            ["workspace_id", "tool_id"], [f"{SCHEMA}.tools.workspace_id", f"{SCHEMA}.tools.id"]
        ),
        Index(None, "workspace_id", "agent_id"),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    tool_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
