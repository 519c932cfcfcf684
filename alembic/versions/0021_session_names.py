"""The names that clients of other APIs give their conversations.

Revision ID: 0021
Revises: 0020
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0021"
down_revision: str | None = "0020"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Create the table."""
    schema = _schema()
    sessions = f"{schema}.sessions" if schema else "sessions"
    op.create_table(
        "session_names",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint(
            "workspace_id", "owner", "name", "agent_id", name="pk_session_names"
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{sessions}.workspace_id", f"{sessions}.id"],
            name="fk_session_names_workspace_id_session_id_sessions",
            ondelete="CASCADE",
        ),
        schema=schema,
    )
    op.create_index(
        "ix_session_names_workspace_id_session_id",
        "session_names",
        ["workspace_id", "session_id"],
        schema=schema,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("session_names", schema=_schema())
