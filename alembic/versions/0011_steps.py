"""Messages with parts, turns with steps, and the ledger of tool calls.

Revision ID: 0011
Revises: 0010
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_WAITING_INDEXES = {
    "ix_tool_calls_waiting": ["expires_at"],
    "ix_tool_calls_inbox": ["workspace_id", "id"],
}
_WAITING = sa.text("status IN ('awaiting_approval', 'awaiting_output')")


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _schema() -> str | None:
    return "agent_platform" if _is_postgres() else None


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON().with_variant(postgresql.JSONB(), "postgresql"))


def _time(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _id(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Uuid(), nullable=nullable)


def _of_turn(table: str) -> sa.ForeignKeyConstraint:
    prefix = f"{_schema()}." if _schema() else ""
    return sa.ForeignKeyConstraint(
        ["workspace_id", "turn_id"],
        [f"{prefix}turns.workspace_id", f"{prefix}turns.id"],
        name=f"fk_{table}_workspace_id_turns",
        ondelete="CASCADE",
    )


def upgrade() -> None:
    """Add columns and tables."""
    schema = _schema()
    op.add_column("messages", _json("parts"), schema=schema)
    op.add_column("turns", _json("request"), schema=schema)
    op.add_column(
        "turns",
        sa.Column("step_count", sa.Integer(), nullable=False, server_default="0"),
        schema=schema,
    )
    op.add_column("turns", sa.Column("stop_reason", sa.String(32)), schema=schema)
    op.create_table(
        "turn_steps",
        _id("workspace_id"),
        _id("turn_id"),
        sa.Column("number", sa.Integer(), nullable=False),
        _time("created_at", nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("reasoning", sa.String()),
        sa.Column("model", sa.String(200)),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("usage_estimated", sa.Boolean(), nullable=False),
        sa.Column("is_billed", sa.Boolean(), nullable=False),
        _of_turn("turn_steps"),
        sa.PrimaryKeyConstraint("workspace_id", "turn_id", "number", name="pk_turn_steps"),
        schema=schema,
    )
    op.create_table(
        "tool_calls",
        _id("workspace_id"),
        _id("id"),
        _time("created_at", nullable=False),
        _id("turn_id"),
        _id("session_id"),
        _id("agent_id", nullable=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("model_call_id", sa.String(200), nullable=False),
        _id("tool_id", nullable=True),
        sa.Column("tool_version", sa.Integer()),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16)),
        sa.Column("effect", sa.String(16)),
        sa.Column("arguments", sa.String(), nullable=False),
        sa.Column("status", sa.String(24), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("result", sa.String()),
        sa.Column("stored_result", sa.String()),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_detail", sa.String()),
        sa.Column("approval_by", sa.String(16)),
        _time("expires_at"),
        _time("started_at"),
        _time("ended_at"),
        _json("resolution"),
        sa.Column("cost_nanos", sa.BigInteger()),
        _of_turn("tool_calls"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_tool_calls"),
        schema=schema,
    )
    op.create_index(
        "ix_tool_calls_workspace_id_turn_id_step_index",
        "tool_calls",
        ["workspace_id", "turn_id", "step", "index"],
        unique=True,
        schema=schema,
    )
    op.create_index(
        "ix_tool_calls_workspace_id_session_id_id",
        "tool_calls",
        ["workspace_id", "session_id", "id"],
        schema=schema,
    )
    for name, columns in _WAITING_INDEXES.items():
        op.create_index(
            name,
            "tool_calls",
            columns,
            schema=schema,
            postgresql_where=_WAITING,
            sqlite_where=_WAITING,
        )


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    op.drop_table("tool_calls", schema=schema)
    op.drop_table("turn_steps", schema=schema)
    for name in ("stop_reason", "step_count", "request"):
        op.drop_column("turns", name, schema=schema)
    op.drop_column("messages", "parts", schema=schema)
