"""Tables for MCP servers, the tools that they list, and the agents that have them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, JsonText, Record, utc_now
from app.models.tools import NOT_ARCHIVED


class McpServer(Record):
    """An MCP server, as its owner set it up and as it was listed last."""

    __tablename__ = "mcp_servers"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        Index(
            "uq_mcp_servers_name",
            "workspace_id",
            "name",
            unique=True,
            info={"where": NOT_ARCHIVED},
        ),
    )

    name: Mapped[str] = mapped_column(String(32))
    settings: Mapped[dict[str, Any]] = mapped_column(JsonText())
    """All that its owner set, with the defaults filled in."""
    secret_names: Mapped[list[str]] = mapped_column(Json())
    """The secrets that its headers use."""
    protocol_version: Mapped[str] = mapped_column(String(32))
    server_name: Mapped[str] = mapped_column(String(200))
    """What it calls itself; likewise its version."""
    server_version: Mapped[str] = mapped_column(String(100))
    listed_at: Mapped[datetime]
    """When its tools were listed last."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)
    archived_at: Mapped[datetime | None]


class McpTool(Base):
    """A tool that a server lists or has listed, and what of it was accepted."""

    __tablename__ = "mcp_tools"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "server_id"],
            [f"{SCHEMA}.mcp_servers.workspace_id", f"{SCHEMA}.mcp_servers.id"],
        ),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    server_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Its name at the server."""
    listed: Mapped[dict[str, Any]] = mapped_column(JsonText())
    """Its definition as it was listed last."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Of name, description and schemas as listed last."""
    accepted_sha256: Mapped[str | None] = mapped_column(String(64))
    """Of the definition that was accepted last; `None` where none was."""
    tool_id: Mapped[UUID | None]
    """The tool that agents are given; `None` until a definition is accepted."""
    problem: Mapped[str | None]
    """Why the definition cannot be accepted."""
    is_listed: Mapped[bool]
    """False once the server does not list it any more."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class AgentMcpServer(Base):
    """An MCP server whose tools the newest version of an agent has."""

    __tablename__ = "agent_mcp_servers"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "agent_id"], [f"{SCHEMA}.agents.workspace_id", f"{SCHEMA}.agents.id"]
        ),
        ForeignKeyConstraint(
            ["workspace_id", "mcp_server_id"],
            [f"{SCHEMA}.mcp_servers.workspace_id", f"{SCHEMA}.mcp_servers.id"],
        ),
        Index(None, "workspace_id", "agent_id"),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    mcp_server_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
