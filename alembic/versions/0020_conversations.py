"""Sessions that no agent has answered in yet, that lists leave out, and that clients name.

Revision ID: 0020
Revises: 0019
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0019"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_REQUIRED, _OPTIONAL = "agent_id CHAR(32) NOT NULL", "agent_id CHAR(32)"
_LISTED = sa.text("NOT is_hidden")


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _schema() -> str | None:
    return "agent_platform" if _is_postgres() else None


def _replace_in_schema(before: str, after: str) -> None:
    """Change the definition of SQLite's table `sessions`, as its manual says for NOT NULL.

    To copy the table instead would delete what refers to it, with the old one.
    """
    connection = op.get_bind()
    version = connection.scalar(sa.text("PRAGMA schema_version"))
    connection.execute(sa.text("PRAGMA writable_schema = ON"))
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after)"
            " WHERE type = 'table' AND name = 'sessions' AND instr(sql, :before) > 0"
        ),
        {"before": before, "after": after},
    )
    connection.execute(sa.text(f"PRAGMA schema_version = {version + 1}"))
    connection.execute(sa.text("PRAGMA writable_schema = OFF"))
    if changed.rowcount != 1:
        raise RuntimeError("the definition of the table `sessions` is not as expected")


def upgrade() -> None:
    """Let sessions have no agent, be left out of lists, and have a client's name."""
    schema = _schema()
    if _is_postgres():
        op.alter_column("sessions", "agent_id", nullable=True, schema=schema)
    else:
        _replace_in_schema(_REQUIRED, _OPTIONAL)
    op.add_column(
        "sessions",
        sa.Column("is_hidden", sa.Boolean(), nullable=False, server_default=sa.false()),
        schema=schema,
    )
    op.add_column("sessions", sa.Column("alias", sa.String(64)), schema=schema)
    op.create_index(
        "ix_sessions_workspace_id_alias",
        "sessions",
        ["workspace_id", "alias"],
        unique=True,
        schema=schema,
    )
    op.create_index(
        "ix_sessions_listed",
        "sessions",
        ["workspace_id", "id"],
        schema=schema,
        postgresql_where=_LISTED,
        sqlite_where=_LISTED,
    )


def downgrade() -> None:
    """Delete the sessions without an agent, and the columns."""
    schema = _schema()
    op.drop_index("ix_sessions_listed", "sessions", schema=schema)
    op.drop_index("ix_sessions_workspace_id_alias", "sessions", schema=schema)
    op.drop_column("sessions", "alias", schema=schema)
    op.drop_column("sessions", "is_hidden", schema=schema)
    op.execute(f"DELETE FROM {f'{schema}.' if schema else ''}sessions WHERE agent_id IS NULL")  # noqa: S608
    if _is_postgres():
        op.alter_column("sessions", "agent_id", nullable=False, schema=schema)
    else:
        _replace_in_schema(_OPTIONAL, _REQUIRED)
