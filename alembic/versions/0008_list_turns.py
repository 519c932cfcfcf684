"""Indexes for listing a workspace's turns, by agent and by how they ended.

Revision ID: 0008
Revises: 0007
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_UNSUCCESSFUL = sa.text("status IN ('failed', 'cancelled')")


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Add both."""
    op.create_index(
        "ix_turns_workspace_id_agent_id_id",
        "turns",
        ["workspace_id", "agent_id", "id"],
        schema=_schema(),
    )
    op.create_index(
        "ix_turns_unsuccessful",
        "turns",
        ["workspace_id", "id"],
        schema=_schema(),
        postgresql_where=_UNSUCCESSFUL,
        sqlite_where=_UNSUCCESSFUL,
    )


def downgrade() -> None:
    """Drop both."""
    for name in ("ix_turns_unsuccessful", "ix_turns_workspace_id_agent_id_id"):
        op.drop_index(name, "turns", schema=_schema())
