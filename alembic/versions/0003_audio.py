"""The audio of voice turns, and the part of an answer that was heard.

Revision ID: 0003
Revises: 0002
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
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
    """Create the tables for recordings and clips."""
    schema = _schema()
    op.add_column("messages", sa.Column("heard_content", sa.String()), schema=schema)
    op.create_table(
        "recordings",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("format", sa.String(8), nullable=False),
        sa.Column("duration_seconds", sa.Double(), nullable=False),
        sa.Column("has_clips", sa.Boolean(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "turn_id", name="pk_recordings"),
        _of_a_turn("recordings"),
        schema=schema,
    )
    op.create_index("ix_recordings_created_at", "recordings", ["created_at"], schema=schema)
    op.create_table(
        "audio_clips",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("content_start", sa.Integer(), nullable=False),
        sa.Column("content_end", sa.Integer(), nullable=False),
        sa.Column("sample_rate_hz", sa.Integer(), nullable=False),
        sa.Column("start_sample", sa.Integer(), nullable=False),
        sa.Column("sample_count", sa.Integer(), nullable=False),
        sa.Column("start_ms", sa.Integer(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("mp3", sa.LargeBinary()),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "turn_id", "index", name="pk_audio_clips"),
        _of_a_turn("audio_clips"),
        schema=schema,
    )
    op.create_index("ix_audio_clips_created_at", "audio_clips", ["created_at"], schema=schema)


def downgrade() -> None:
    """Drop the tables and columns."""
    schema = _schema()
    op.drop_table("audio_clips", schema=schema)
    op.drop_table("recordings", schema=schema)
    op.drop_column("messages", "heard_content", schema=schema)
