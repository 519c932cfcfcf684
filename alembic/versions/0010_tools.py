"""Tools with their versions, the agents that have them, and secrets.

Revision ID: 0010
Revises: 0009
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_NOT_ARCHIVED = sa.text("archived_at IS NULL")
_AGENT_COLUMNS = ("tools", "tool_policy", "output_schema")


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _target(table: str, *columns: str) -> list[str]:
    schema = _schema()
    return [f"{schema + '.' if schema else ''}{table}.{column}" for column in columns]


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str) -> sa.Column[object]:
    kind = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    return sa.Column(name, kind, nullable=False)


def _id(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=False)


def _of_a_workspace(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["workspace_id"],
        _target("workspaces", "id"),
        name=f"fk_{table}_workspace_id_workspaces",
    )


def _of(table: str, column: str, referred: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["workspace_id", column],
        _target(referred, "workspace_id", "id"),
        name=f"fk_{table}_workspace_id_{column}_{referred}",
    )


def upgrade() -> None:
    """Create the tables, and the columns of agents."""
    schema = _schema()
    op.create_table(
        "secrets",
        _id("workspace_id"),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(16), nullable=False),
        _json("hosts"),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("workspace_id", "name", name="pk_secrets"),
        _of_a_workspace("secrets"),
        schema=schema,
    )
    op.create_table(
        "tools",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        _json("secret_names"),
        _time("updated_at"),
        _time("archived_at", nullable=True),
        _id("workspace_id"),
        _id("id"),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_tools"),
        _of_a_workspace("tools"),
        schema=schema,
    )
    op.create_index(
        "uq_tools_name",
        "tools",
        ["workspace_id", "name"],
        unique=True,
        schema=schema,
        postgresql_where=_NOT_ARCHIVED,
        sqlite_where=_NOT_ARCHIVED,
    )
    op.create_table(
        "tool_versions",
        _id("workspace_id"),
        _id("tool_id"),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("definition", sa.String(), nullable=False),
        sa.Column("shown_sha256", sa.String(64), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "tool_id", "version", name="pk_tool_versions"),
        _of("tool_versions", "tool_id", "tools"),
        schema=schema,
    )
    op.create_table(
        "agent_tools",
        _id("workspace_id"),
        _id("tool_id"),
        _id("agent_id"),
        sa.PrimaryKeyConstraint("workspace_id", "tool_id", "agent_id", name="pk_agent_tools"),
        _of("agent_tools", "agent_id", "agents"),
        _of("agent_tools", "tool_id", "tools"),
        schema=schema,
    )
    op.create_index(
        "ix_agent_tools_workspace_id_agent_id",
        "agent_tools",
        ["workspace_id", "agent_id"],
        schema=schema,
    )
    for table in ("agents", "agent_versions"):
        for column in _AGENT_COLUMNS:
            op.add_column(table, sa.Column(column, sa.String()), schema=schema)


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    for table in ("agents", "agent_versions"):
        for column in reversed(_AGENT_COLUMNS):
            op.drop_column(table, column, schema=schema)
    for table in ("agent_tools", "tool_versions", "tools", "secrets"):
        op.drop_table(table, schema=schema)
