"""How tools were used in deleted sessions, and an index of the results that are dropped one day.

Revision ID: 0019
Revises: 0018
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_LONG_RESULTS = sa.text("stored_result IS NOT NULL")


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Create the table and the index; a result that is stored twice is stored once."""
    schema = _schema()
    op.create_table(
        "kept_tool_usage",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("agent_id", sa.Uuid()),
        sa.Column("key_id", sa.String(64)),
        sa.Column("user_id", sa.String(200)),
        sa.Column("model", sa.String(200)),
        sa.Column("tool_id", sa.Uuid(), nullable=False),
        sa.Column("tool_name", sa.String(64), nullable=False),
        sa.Column("tool_calls", sa.Integer(), nullable=False),
        sa.Column("tool_failures", sa.Integer(), nullable=False),
        sa.Column("tool_ms", sa.Double[float](), nullable=False),
        sa.Column("cost_nanos", sa.BigInteger()),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_kept_tool_usage"),
        schema=schema,
    )
    op.create_index(
        "ix_kept_tool_usage_workspace_id_created_at",
        "kept_tool_usage",
        ["workspace_id", "created_at"],
        schema=schema,
    )
    calls = sa.table(
        "tool_calls",
        sa.column("stored_result", sa.String()),
        sa.column("result", sa.String()),
        schema=schema,
    )
    op.execute(
        sa.update(calls).where(calls.c.stored_result == calls.c.result).values(stored_result=None)
    )
    op.create_index(
        "ix_tool_calls_long_results",
        "tool_calls",
        ["ended_at"],
        schema=schema,
        postgresql_where=_LONG_RESULTS,
        sqlite_where=_LONG_RESULTS,
    )


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    op.drop_index("ix_tool_calls_long_results", "tool_calls", schema=schema)
    op.drop_table("kept_tool_usage", schema=schema)
