"""Typed answers: the value of an answer in JSON, and what of it an agent reads aloud.

Revision ID: 0015
Revises: 0014
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_PERSONAS = ("agents", "agent_versions")


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def upgrade() -> None:
    """Add the columns."""
    schema = _schema()
    op.add_column("messages", sa.Column("output", sa.String()), schema=schema)
    for table in _PERSONAS:
        op.add_column(table, sa.Column("output_speak", sa.String(300)), schema=schema)


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    for table in _PERSONAS:
        op.drop_column(table, "output_speak", schema=schema)
    op.drop_column("messages", "output", schema=schema)
