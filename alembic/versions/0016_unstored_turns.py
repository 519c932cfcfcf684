"""Turns without a session, and names of agents for clients of other APIs.

Revision ID: 0016
Revises: 0015
"""

import re
import unicodedata
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_REQUIRED, _OPTIONAL = "session_id CHAR(32) NOT NULL", "session_id CHAR(32)"


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _schema() -> str | None:
    return "agent_platform" if _is_postgres() else None


def _replace_in_schema(before: str, after: str) -> None:
    """Change the definition of SQLite's table `turns`, as its manual says for NOT NULL.

    To copy the table instead would delete what refers to it, with the old one.
    """
    connection = op.get_bind()
    version = connection.scalar(sa.text("PRAGMA schema_version"))
    connection.execute(sa.text("PRAGMA writable_schema = ON"))
    changed = connection.execute(
        sa.text(
            "UPDATE sqlite_master SET sql = replace(sql, :before, :after)"
            " WHERE type = 'table' AND name = 'turns' AND instr(sql, :before) > 0"
        ),
        {"before": before, "after": after},
    )
    connection.execute(sa.text(f"PRAGMA schema_version = {version + 1}"))
    connection.execute(sa.text("PRAGMA writable_schema = OFF"))
    if changed.rowcount != 1:
        raise RuntimeError("the definition of the table `turns` is not as expected")


def _free_slug(name: str, taken: set[str]) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:48].strip("-") or "agent"
    free, number = slug, 2
    while free in taken:
        free, number = f"{slug}-{number}", number + 1
    return free


def _name_agents() -> None:
    columns = (sa.column(name) for name in ("workspace_id", "id", "name", "slug"))
    agents = sa.table("agents", *columns, schema=_schema())
    connection = op.get_bind()
    rows = connection.execute(
        sa.select(agents.c.workspace_id, agents.c.id, agents.c.name).order_by(agents.c.id)
    ).all()
    taken: dict[object, set[str]] = {}
    for workspace_id, agent_id, name in rows:
        slugs = taken.setdefault(workspace_id, set())
        slug = _free_slug(name, slugs)
        slugs.add(slug)
        connection.execute(
            sa.update(agents)
            .where(agents.c.workspace_id == workspace_id, agents.c.id == agent_id)
            .values(slug=slug)
        )


def upgrade() -> None:
    """Let turns have no session, and give every agent a slug."""
    schema = _schema()
    if _is_postgres():
        op.alter_column("turns", "session_id", nullable=True, schema=schema)
    else:
        _replace_in_schema(_REQUIRED, _OPTIONAL)
    op.add_column("agents", sa.Column("slug", sa.String(64)), schema=schema)
    _name_agents()
    op.create_index(
        "ix_agents_workspace_id_name", "agents", ["workspace_id", "name"], schema=schema
    )
    op.create_index(
        "ix_agents_workspace_id_slug",
        "agents",
        ["workspace_id", "slug"],
        unique=True,
        schema=schema,
    )


def downgrade() -> None:
    """Delete the turns without a session, and the slugs."""
    schema = _schema()
    op.drop_index("ix_agents_workspace_id_slug", "agents", schema=schema)
    op.drop_index("ix_agents_workspace_id_name", "agents", schema=schema)
    op.drop_column("agents", "slug", schema=schema)
    op.execute(f"DELETE FROM {f'{schema}.' if schema else ''}turns WHERE session_id IS NULL")  # noqa: S608
    if _is_postgres():
        op.alter_column("turns", "session_id", nullable=False, schema=schema)
    else:
        _replace_in_schema(_OPTIONAL, _REQUIRED)
