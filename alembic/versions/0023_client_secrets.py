"""Client secrets of live voice: short-lived credentials with the settings of their lines.

Revision ID: 0023
Revises: 0021
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0023"
down_revision: str | None = "0021"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _target(table: str, *columns: str) -> list[str]:
    schema = _schema()
    return [f"{schema + '.' if schema else ''}{table}.{column}" for column in columns]


def upgrade() -> None:
    """Create the table."""
    schema = _schema()
    op.create_table(
        "client_secrets",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.String(8)),
        sa.Column("session_id", sa.Uuid()),
        sa.Column("user_id", sa.String(200)),
        sa.Column(
            "configuration",
            sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
            nullable=False,
        ),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_client_secrets"),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            _target("workspaces", "id"),
            name="fk_client_secrets_workspace_id_workspaces",
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], _target("api_keys", "id"), name="fk_client_secrets_key_id_api_keys"
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            _target("sessions", "workspace_id", "id"),
            name="fk_client_secrets_workspace_id_sessions",
            ondelete="CASCADE",
        ),
        schema=schema,
    )
    op.create_index("ix_client_secrets_expires_at", "client_secrets", ["expires_at"], schema=schema)
    op.create_index(
        "ix_client_secrets_workspace_id_session_id",
        "client_secrets",
        ["workspace_id", "session_id"],
        schema=schema,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("client_secrets", schema=_schema())
