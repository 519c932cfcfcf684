"""Full-text search that uses its index under row-level security, and grants on functions.

Revision ID: 0006
Revises: 0005
"""

from collections.abc import Sequence

from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# Each document contains its workspace as a lexeme, which no text contains, as it has a space.
_DOCUMENT = (
    "to_tsvector('simple', content) || array_to_tsvector(ARRAY['in ' || workspace_id::text])"
)
# Runs as the owner. Where the owner bypasses row-level security, the policies do not prevent the
# use of the index; so the function itself checks the transaction's workspace, as they would.
_SEARCH = f"""
CREATE FUNCTION agent_platform.sessions_that_say(words text) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT session_id FROM agent_platform.messages
WHERE workspace_id
    = nullif(trim('*' FROM current_setting('agent_platform.workspace_id', true)), '')::uuid
AND numnode(plainto_tsquery('simple', words)) > 0
AND {_DOCUMENT} @@ (
    plainto_tsquery('simple', words)
    && ('''in ' || current_setting('agent_platform.workspace_id', true) || '''')::tsquery
)
$$
"""  # noqa: S608  # a constant
# Called after every upgrade, as `protect_tables` is.
_PROTECT_FUNCTIONS = """
CREATE FUNCTION agent_platform.protect_functions() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA agent_platform FROM PUBLIC;
    IF EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = 'agent_platform_app' AND pg_has_role(oid, 'MEMBER')
    ) THEN
        GRANT EXECUTE ON FUNCTION agent_platform.sessions_that_say(text) TO agent_platform_app;
    END IF;
END $$
"""


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _index(document: str) -> None:
    op.execute("DROP INDEX agent_platform.ix_messages_search")
    op.execute(
        f"CREATE INDEX ix_messages_search ON agent_platform.messages USING gin (({document}))"
    )


def upgrade() -> None:
    """Add the workspace to the index, and create the search function."""
    if _is_postgres():
        _index(_DOCUMENT)
        op.execute(_SEARCH)
        op.execute(_PROTECT_FUNCTIONS)


def downgrade() -> None:
    """Drop the functions and restore the index."""
    if _is_postgres():
        op.execute("DROP FUNCTION agent_platform.protect_functions()")
        op.execute("DROP FUNCTION agent_platform.sessions_that_say(text)")
        _index("to_tsvector('simple', content)")
