"""Limits of child keys and end users, and a search index that takes any text.

Revision ID: 0009
Revises: 0008
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_WORKSPACE_WORD = "array_to_tsvector(ARRAY['in ' || workspace_id::text])"
# A vector takes 1 MB: 50,000 characters of any script, twice where words have hyphens, are less.
_DOCUMENT = f"to_tsvector('simple', left(content, 50000)) || {_WORKSPACE_WORD}"
_WHOLE_DOCUMENT = f"to_tsvector('simple', content) || {_WORKSPACE_WORD}"


def _search(document: str) -> str:
    return f"""
CREATE OR REPLACE FUNCTION agent_platform.sessions_that_say(words text) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT session_id FROM agent_platform.messages
WHERE workspace_id
    = nullif(trim('*' FROM current_setting('agent_platform.workspace_id', true)), '')::uuid
AND numnode(plainto_tsquery('simple', words)) > 0
AND {document} @@ (
    plainto_tsquery('simple', words)
    && ('''in ' || current_setting('agent_platform.workspace_id', true) || '''')::tsquery
)
$$
"""  # noqa: S608  # a constant


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _schema() -> str | None:
    return "agent_platform" if _is_postgres() else None


def _json(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.JSON().with_variant(postgresql.JSONB(), "postgresql"))


def _index(document: str) -> None:
    op.execute("DROP INDEX agent_platform.ix_messages_search")
    op.execute(
        f"CREATE INDEX ix_messages_search ON agent_platform.messages USING gin (({document}))"
    )
    op.execute(_search(document))


def _resize_bucket(length: int, before: int) -> None:
    with op.batch_alter_table("budgets", schema=_schema()) as budgets:
        budgets.alter_column(
            "bucket", type_=sa.String(length), existing_type=sa.String(before), nullable=False
        )


def upgrade() -> None:
    """Add the columns; keys that a key made become its children."""
    schema = _schema()
    prefix = f"{schema}." if schema else ""
    op.add_column("api_keys", sa.Column("parent_id", sa.String(8)), schema=schema)
    op.add_column("api_keys", _json("user_limits"), schema=schema)
    op.execute(
        f"UPDATE {prefix}api_keys SET parent_id = substr(created_by, 5, 8) "  # noqa: S608
        "WHERE created_by LIKE 'key:________'"
    )
    op.add_column("turns", _json("reserved_buckets"), schema=schema)
    _resize_bucket(300, 64)
    if _is_postgres():
        _index(_DOCUMENT)


def downgrade() -> None:
    """Drop them."""
    schema = _schema()
    if _is_postgres():
        _index(_WHOLE_DOCUMENT)
    op.execute(f"DELETE FROM {f'{schema}.' if schema else ''}budgets")  # noqa: S608  # of a day
    _resize_bucket(64, 300)
    op.drop_column("turns", "reserved_buckets", schema=schema)
    op.drop_column("api_keys", "user_limits", schema=schema)
    op.drop_column("api_keys", "parent_id", schema=schema)
