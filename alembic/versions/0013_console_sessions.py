"""Console sessions: sign-ins of browsers.

Revision ID: 0013
Revises: 0011
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0011"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _target(table: str) -> list[str]:
    schema = _schema()
    return [f"{schema}.{table}.id" if schema else f"{table}.id"]


def upgrade() -> None:
    """Create the table."""
    schema = _schema()
    op.create_table(
        "console_sessions",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.String(8)),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("credential_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_console_sessions"),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            _target("workspaces"),
            name="fk_console_sessions_workspace_id_workspaces",
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], _target("api_keys"), name="fk_console_sessions_key_id_api_keys"
        ),
        schema=schema,
    )
    op.create_index(
        "ix_console_sessions_expires_at", "console_sessions", ["expires_at"], schema=schema
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("console_sessions", schema=_schema())
