"""Usage and cost of turns, daily budgets, requests per minute, and usage of deleted sessions.

Revision ID: 0005
Revises: 0004
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TURN_COLUMNS = (
    ("agent_id", sa.Uuid()),
    ("key_id", sa.String(64)),
    ("user_id", sa.String(200)),
    ("cost_nanos", sa.BigInteger()),
    ("usage_estimated", sa.Boolean()),
    ("reserved_day", sa.Date()),
    ("reserved_tokens", sa.BigInteger()),
    ("reserved_nanos", sa.BigInteger()),
)
_KEPT_COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "speech_out_characters")


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Create the tables and columns; set agent and user of existing turns from their sessions."""
    schema = _schema()
    for name, kind in _TURN_COLUMNS:
        op.add_column("turns", sa.Column(name, kind), schema=schema)
    prefix = f"{schema}." if schema else ""
    of_session = (
        f"FROM {prefix}sessions WHERE sessions.workspace_id = turns.workspace_id "
        "AND sessions.id = turns.session_id"
    )
    op.execute(
        f"UPDATE {prefix}turns SET agent_id = (SELECT sessions.agent_id {of_session}), "  # noqa: S608
        f"user_id = (SELECT sessions.user_id {of_session})"
    )
    op.create_index(
        "ix_turns_workspace_id_created_at", "turns", ["workspace_id", "created_at"], schema=schema
    )
    op.create_table(
        "budgets",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("bucket", sa.String(64), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("nanos", sa.BigInteger(), nullable=False),
        sa.Column("upload_ms", sa.BigInteger(), nullable=False),
        sa.Column("live_turns", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "bucket", name="pk_budgets"),
        schema=schema,
    )
    op.create_table(
        "request_windows",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("bucket", sa.String(300), nullable=False),
        sa.Column("minute", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "bucket", name="pk_request_windows"),
        schema=schema,
    )
    op.create_index("ix_request_windows_minute", "request_windows", ["minute"], schema=schema)
    op.create_table(
        "kept_usage",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("agent_id", sa.Uuid()),
        sa.Column("key_id", sa.String(64)),
        sa.Column("user_id", sa.String(200)),
        sa.Column("model", sa.String(200)),
        sa.Column("turns", sa.Integer(), nullable=False),
        sa.Column("unpriced_turns", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _KEPT_COUNTS),
        sa.Column("speech_in_seconds", sa.Double[float](), nullable=False),
        sa.Column("cost_nanos", sa.BigInteger()),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_kept_usage"),
        schema=schema,
    )
    op.create_index(
        "ix_kept_usage_workspace_id_created_at",
        "kept_usage",
        ["workspace_id", "created_at"],
        schema=schema,
    )


def downgrade() -> None:
    """Drop the tables and columns."""
    schema = _schema()
    for table in ("kept_usage", "request_windows", "budgets"):
        op.drop_table(table, schema=schema)
    op.drop_index("ix_turns_workspace_id_created_at", "turns", schema=schema)
    for name, _ in _TURN_COLUMNS:
        op.drop_column("turns", name, schema=schema)
