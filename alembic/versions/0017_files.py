"""Files: images and documents of messages, and images of tools' results.

Revision ID: 0017
Revises: 0016
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _schema() -> str | None:
    return "agent_platform" if _is_postgres() else None


def _target(table: str, *columns: str) -> list[str]:
    prefix = f"{_schema()}." if _schema() else ""
    return [f"{prefix}{table}.{column}" for column in columns]


def upgrade() -> None:
    """Add tables and columns."""
    schema = _schema()
    op.create_table(
        "files",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("media_type", sa.String(100), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer()),
        sa.Column("height", sa.Integer()),
        sa.Column("text", sa.String()),
        sa.Column("text_tokens", sa.Integer()),
        sa.Column("user_id", sa.String(200)),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column("in_store", sa.Boolean(), nullable=False),
        sa.Column("data", sa.LargeBinary()),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["workspace_id"], _target("workspaces", "id"), name="fk_files_workspace_id_workspaces"
        ),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_files"),
        schema=schema,
    )
    op.create_index(
        "ix_files_workspace_id_user_id_id",
        "files",
        ["workspace_id", "user_id", "id"],
        schema=schema,
    )
    op.create_index(
        "ix_files_workspace_id_session_id", "files", ["workspace_id", "session_id"], schema=schema
    )
    op.create_index("ix_files_expires_at", "files", ["expires_at"], schema=schema)
    op.create_table(
        "session_files",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            _target("sessions", "workspace_id", "id"),
            name="fk_session_files_workspace_id_session_id_sessions",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "file_id"],
            _target("files", "workspace_id", "id"),
            name="fk_session_files_workspace_id_file_id_files",
        ),
        sa.PrimaryKeyConstraint("workspace_id", "session_id", "file_id", name="pk_session_files"),
        schema=schema,
    )
    op.create_index(
        "ix_session_files_workspace_id_file_id",
        "session_files",
        ["workspace_id", "file_id"],
        schema=schema,
    )
    for table in ("agents", "agent_versions"):
        op.add_column(table, sa.Column("vision", sa.Boolean()), schema=schema)
    op.add_column(
        "tool_calls",
        sa.Column("files", sa.JSON().with_variant(postgresql.JSONB(), "postgresql")),
        schema=schema,
    )


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    op.drop_column("tool_calls", "files", schema=schema)
    for table in ("agents", "agent_versions"):
        op.drop_column(table, "vision", schema=schema)
    op.drop_table("session_files", schema=schema)
    op.drop_table("files", schema=schema)
