"""Initial tables.

Revision ID: 0001
Revises:
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_DEFAULT_WORKSPACE_ID = UUID("01900000-0000-7000-8000-000000000001")
_LIVE = sa.text("status IN ('in_progress', 'requires_action')")
_UNSETTLED = sa.text("status IN ('queued', 'in_progress', 'requires_action')")


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _target(table: str, *columns: str) -> list[str]:
    schema = _schema()
    return [f"{schema + '.' if schema else ''}{table}.{column}" for column in columns]


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str, *, nullable: bool = False) -> sa.Column[object]:
    kind = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    return sa.Column(name, kind, nullable=nullable)


def _persona() -> list[sa.Column[object]]:
    return [
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("system_prompt", sa.String(), nullable=False),
        sa.Column("model", sa.String(200)),
        sa.Column("temperature", sa.Double()),
        sa.Column("max_output_tokens", sa.Integer()),
        sa.Column("voice", sa.String(64)),
        sa.Column("language", sa.String(16)),
    ]


def upgrade() -> None:
    """Create every table, and the default workspace."""
    schema = _schema()
    workspaces = op.create_table(
        "workspaces",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_workspaces"),
        schema=schema,
    )
    op.create_table(
        "agents",
        *_persona(),
        sa.Column("version", sa.Integer(), nullable=False),
        _time("updated_at"),
        _time("archived_at", nullable=True),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_agents"),
        sa.ForeignKeyConstraint(
            ["workspace_id"], _target("workspaces", "id"), name="fk_agents_workspace_id_workspaces"
        ),
        schema=schema,
    )
    op.create_table(
        "agent_versions",
        *_persona(),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "agent_id", "version", name="pk_agent_versions"),
        sa.ForeignKeyConstraint(
            ["workspace_id", "agent_id"],
            _target("agents", "workspace_id", "id"),
            name="fk_agent_versions_workspace_id_agent_id_agents",
        ),
        schema=schema,
    )
    op.create_table(
        "sessions",
        sa.Column("agent_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.String(200)),
        sa.Column("title", sa.String(200)),
        _json("metadata"),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("forked_from_session_id", sa.Uuid()),
        sa.Column("forked_from_seq", sa.Integer()),
        _time("updated_at"),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_sessions"),
        sa.ForeignKeyConstraint(
            ["workspace_id", "agent_id"],
            _target("agents", "workspace_id", "id"),
            name="fk_sessions_workspace_id_agent_id_agents",
        ),
        schema=schema,
    )
    op.create_index(
        "ix_sessions_workspace_id_agent_id_id",
        "sessions",
        ["workspace_id", "agent_id", "id"],
        schema=schema,
    )
    op.create_index(
        "ix_sessions_workspace_id_user_id_id",
        "sessions",
        ["workspace_id", "user_id", "id"],
        schema=schema,
    )
    op.create_table(
        "turns",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("user_message_id", sa.Uuid(), nullable=False),
        sa.Column("message_id", sa.Uuid(), nullable=False),
        sa.Column("user_seq", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("recoveries", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Uuid()),
        _time("lease_expires_at", nullable=True),
        _time("started_at", nullable=True),
        _time("ended_at", nullable=True),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_detail", sa.String()),
        sa.Column("finish_reason", sa.String(32)),
        sa.Column("model", sa.String(200)),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("cached_tokens", sa.Integer()),
        sa.Column("completion_tokens", sa.Integer()),
        sa.Column("speech_in_seconds", sa.Double()),
        sa.Column("speech_out_characters", sa.Integer()),
        _json("timings", nullable=True),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_turns"),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            _target("sessions", "workspace_id", "id"),
            name="fk_turns_workspace_id_session_id_sessions",
            ondelete="CASCADE",
        ),
        schema=schema,
    )
    op.create_index(
        "uq_turns_live",
        "turns",
        ["workspace_id", "session_id"],
        unique=True,
        schema=schema,
        postgresql_where=_LIVE,
        sqlite_where=_LIVE,
    )
    op.create_index(
        "ix_turns_workspace_id_session_id_user_seq",
        "turns",
        ["workspace_id", "session_id", "user_seq"],
        unique=True,
        schema=schema,
    )
    op.create_index(
        "ix_turns_unsettled",
        "turns",
        ["workspace_id", "session_id", "user_seq"],
        schema=schema,
        postgresql_where=_UNSETTLED,
        sqlite_where=_UNSETTLED,
    )
    op.create_index(
        "ix_turns_lease",
        "turns",
        ["lease_expires_at"],
        schema=schema,
        postgresql_where=_LIVE,
        sqlite_where=_LIVE,
    )
    op.create_table(
        "messages",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid()),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("modality", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("content", sa.String(), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_messages"),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            _target("sessions", "workspace_id", "id"),
            name="fk_messages_workspace_id_session_id_sessions",
            ondelete="CASCADE",
        ),
        sa.UniqueConstraint(
            "workspace_id", "session_id", "seq", name="uq_messages_workspace_id_session_id_seq"
        ),
        schema=schema,
    )
    if schema:
        op.execute(
            "CREATE INDEX ix_messages_search ON agent_platform.messages "
            "USING gin (to_tsvector('simple', content))"
        )
    op.bulk_insert(
        workspaces,
        [{"id": _DEFAULT_WORKSPACE_ID, "name": "default", "created_at": datetime.now(UTC)}],
    )


def downgrade() -> None:
    """Drop every table."""
    for table in ("messages", "turns", "sessions", "agent_versions", "agents", "workspaces"):
        op.drop_table(table, schema=_schema())
