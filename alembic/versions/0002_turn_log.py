"""Events of turns, idempotency keys, cancellation by another server, and `context_tokens`.

Revision ID: 0002
Revises: 0001
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _of_a_turn(table: str) -> sa.ForeignKeyConstraint:
    prefix = f"{_schema()}." if _schema() else ""
    return sa.ForeignKeyConstraint(
        ["workspace_id", "turn_id"],
        [f"{prefix}turns.workspace_id", f"{prefix}turns.id"],
        name=f"fk_{table}_workspace_id_turn_id_turns",
        ondelete="CASCADE",
    )


def upgrade() -> None:
    """Create the tables and columns for reconnecting clients."""
    schema = _schema()
    op.add_column(
        "turns", sa.Column("cancel_requested_at", sa.DateTime(timezone=True)), schema=schema
    )
    for table in ("agents", "agent_versions"):
        op.add_column(table, sa.Column("context_tokens", sa.Integer()), schema=schema)
    op.create_table(
        "turn_events",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.Column("events", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "turn_id", "last_number", name="pk_turn_events"),
        _of_a_turn("turn_events"),
        schema=schema,
    )
    op.create_index("ix_turn_events_created_at", "turn_events", ["created_at"], schema=schema)
    op.create_table(
        "idempotency_keys",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("turn_id", sa.Uuid()),
        sa.Column("status", sa.Integer()),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "key", name="pk_idempotency_keys"),
        _of_a_turn("idempotency_keys"),
        schema=schema,
    )
    op.create_index(
        "ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"], schema=schema
    )
    op.create_index(
        "ix_idempotency_keys_workspace_id_turn_id",
        "idempotency_keys",
        ["workspace_id", "turn_id"],
        schema=schema,
    )


def downgrade() -> None:
    """Drop the tables and columns."""
    schema = _schema()
    op.drop_table("idempotency_keys", schema=schema)
    op.drop_table("turn_events", schema=schema)
    op.drop_column("turns", "cancel_requested_at", schema=schema)
    for table in ("agents", "agent_versions"):
        op.drop_column(table, "context_tokens", schema=schema)
