"""Summaries of what no longer fits into a session's prompts.

Revision ID: 0014
Revises: 0013
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("sessions", sa.Column("summary", sa.String()), schema=_schema())
    op.add_column("sessions", sa.Column("summary_seq", sa.Integer()), schema=_schema())


def downgrade() -> None:
    """Drop them; summaries can be made again."""
    op.drop_column("sessions", "summary_seq", schema=_schema())
    op.drop_column("sessions", "summary", schema=_schema())
