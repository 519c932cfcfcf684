"""MCP servers, the tools that they list, and their questions.

Revision ID: 0018
Revises: 0017
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_NOT_ARCHIVED = sa.text("archived_at IS NULL")
_WAITING_INDEXES = {
    "ix_tool_calls_waiting": ["expires_at"],
    "ix_tool_calls_inbox": ["workspace_id", "id"],
}
_WAITING_BEFORE = "status IN ('awaiting_approval', 'awaiting_output')"
_WAITING = "status IN ('awaiting_approval', 'awaiting_output', 'awaiting_answer')"


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _target(table: str, *columns: str) -> list[str]:
    schema = _schema()
    return [f"{schema + '.' if schema else ''}{table}.{column}" for column in columns]


def _time(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str, *, nullable: bool = True) -> sa.Column[object]:
    kind = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    return sa.Column(name, kind, nullable=nullable)


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=nullable)


def _of(table: str, column: str, referred: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["workspace_id", column],
        _target(referred, "workspace_id", "id"),
        name=f"fk_{table}_workspace_id_{column}_{referred}",
    )


def upgrade() -> None:
    """Create the tables, and add columns."""
    schema = _schema()
    op.create_table(
        "mcp_servers",
        _id("workspace_id"),
        _id("id"),
        _time("created_at"),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("settings", sa.String(), nullable=False),
        _json("secret_names", nullable=False),
        sa.Column("protocol_version", sa.String(32), nullable=False),
        sa.Column("server_name", sa.String(200), nullable=False),
        sa.Column("server_version", sa.String(100), nullable=False),
        _time("listed_at"),
        _time("updated_at"),
        _time("archived_at", nullable=True),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_mcp_servers"),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            _target("workspaces", "id"),
            name="fk_mcp_servers_workspace_id_workspaces",
        ),
        schema=schema,
    )
    op.create_index(
        "uq_mcp_servers_name",
        "mcp_servers",
        ["workspace_id", "name"],
        unique=True,
        schema=schema,
        postgresql_where=_NOT_ARCHIVED,
        sqlite_where=_NOT_ARCHIVED,
    )
    op.create_table(
        "mcp_tools",
        _id("workspace_id"),
        _id("server_id"),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("listed", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("accepted_sha256", sa.String(64)),
        _id("tool_id", nullable=True),
        sa.Column("problem", sa.String()),
        sa.Column("is_listed", sa.Boolean(), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("workspace_id", "server_id", "name", name="pk_mcp_tools"),
        _of("mcp_tools", "server_id", "mcp_servers"),
        schema=schema,
    )
    op.create_table(
        "agent_mcp_servers",
        _id("workspace_id"),
        _id("mcp_server_id"),
        _id("agent_id"),
        sa.PrimaryKeyConstraint(
            "workspace_id", "mcp_server_id", "agent_id", name="pk_agent_mcp_servers"
        ),
        _of("agent_mcp_servers", "agent_id", "agents"),
        _of("agent_mcp_servers", "mcp_server_id", "mcp_servers"),
        schema=schema,
    )
    op.create_index(
        "ix_agent_mcp_servers_workspace_id_agent_id",
        "agent_mcp_servers",
        ["workspace_id", "agent_id"],
        schema=schema,
    )
    op.add_column("tools", _id("mcp_server_id", nullable=True), schema=schema)
    op.add_column("tool_calls", _json("question"), schema=schema)
    op.add_column("tool_calls", _json("answer"), schema=schema)
    _make_waiting_indexes_anew(_WAITING)


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    _make_waiting_indexes_anew(_WAITING_BEFORE)
    op.drop_column("tool_calls", "answer", schema=schema)
    op.drop_column("tool_calls", "question", schema=schema)
    op.drop_column("tools", "mcp_server_id", schema=schema)
    for table in ("agent_mcp_servers", "mcp_tools", "mcp_servers"):
        op.drop_table(table, schema=schema)


def _make_waiting_indexes_anew(condition: str) -> None:
    schema = _schema()
    for name, columns in _WAITING_INDEXES.items():
        op.drop_index(name, "tool_calls", schema=schema)
        op.create_index(
            name,
            "tool_calls",
            columns,
            schema=schema,
            postgresql_where=sa.text(condition),
            sqlite_where=sa.text(condition),
        )
