"""The played milliseconds of an answer, with a cancellation that another server requests.

Revision ID: 0007
Revises: 0006
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Add the column next to `cancel_requested_at`."""
    op.add_column("turns", sa.Column("cancel_played_ms", sa.Integer()), schema=_schema())


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("turns", "cancel_played_ms", schema=_schema())
