"""API keys, session tokens, an append-only audit log, and row-level security.

Revision ID: 0004
Revises: 0003
"""

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

# The server switches to this role in each transaction, so that the policies apply whichever user it
# connects as. Where roles cannot be created, the policies apply to the tables' owner as well.
_MAKE_ROLE = """
DO $$ BEGIN
    BEGIN
        CREATE ROLE agent_platform_app NOLOGIN NOBYPASSRLS;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
        WHEN insufficient_privilege THEN RETURN;
    END;
    IF NOT pg_has_role('agent_platform_app', 'MEMBER') THEN
        GRANT agent_platform_app TO CURRENT_USER;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $$
"""
# Called after every upgrade, so that tables of later migrations are covered.
_PROTECT_TABLES = """
CREATE FUNCTION agent_platform.protect_tables() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found record;
    has_role boolean := EXISTS (
        SELECT FROM pg_roles
        WHERE rolname = 'agent_platform_app' AND pg_has_role(oid, 'MEMBER')
    );
BEGIN
    FOR found IN
        SELECT c.relname AS name, a.attname AS workspace
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relnamespace = 'agent_platform'::regnamespace AND c.relkind = 'r'
        AND a.attname = CASE c.relname WHEN 'workspaces' THEN 'id' ELSE 'workspace_id' END
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_policies WHERE schemaname = 'agent_platform'
            AND tablename = found.name AND policyname = 'own_workspace'
        ) THEN
            EXECUTE format(
                'ALTER TABLE agent_platform.%I '
                'ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', found.name);
            EXECUTE format(
                'CREATE POLICY own_workspace ON agent_platform.%I USING '
                '(current_setting(''agent_platform.workspace_id'', true) IN (''*'', %I::text))',
                found.name, found.workspace);
        END IF;
    END LOOP;
    IF has_role THEN
        GRANT USAGE ON SCHEMA agent_platform TO agent_platform_app;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA agent_platform TO agent_platform_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA agent_platform
            TO agent_platform_app;
        REVOKE UPDATE, DELETE ON agent_platform.audit_log FROM agent_platform_app;
        REVOKE INSERT, UPDATE, DELETE ON agent_platform.alembic_version FROM agent_platform_app;
    END IF;
END $$
"""
_UNPROTECT_TABLES = """
DO $$ DECLARE found record;
BEGIN
    FOR found IN
        SELECT tablename AS name FROM pg_policies
        WHERE schemaname = 'agent_platform' AND policyname = 'own_workspace'
    LOOP
        EXECUTE format('DROP POLICY own_workspace ON agent_platform.%I', found.name);
        EXECUTE format(
            'ALTER TABLE agent_platform.%I '
            'DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', found.name);
    END LOOP;
END $$
"""


def _schema() -> str | None:
    return "agent_platform" if op.get_bind().dialect.name == "postgresql" else None


def _target(table: str, *columns: str) -> list[str]:
    schema = _schema()
    return [f"{schema + '.' if schema else ''}{table}.{column}" for column in columns]


def _time(name: str, *, nullable: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _json(name: str) -> sa.Column[object]:
    kind = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    return sa.Column(name, kind, nullable=False)


def _of_a_workspace(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["workspace_id"],
        _target("workspaces", "id"),
        name=f"fk_{table}_workspace_id_workspaces",
    )


def upgrade() -> None:
    """Create the tables, the role and the policies."""
    schema = _schema()
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        _json("scopes"),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("previous_secret_hash", sa.LargeBinary(32)),
        _time("previous_expires_at", nullable=True),
        _time("created_at"),
        sa.Column("created_by", sa.String(256), nullable=False),
        _time("rotated_at", nullable=True),
        _time("expires_at", nullable=True),
        _time("revoked_at", nullable=True),
        sa.Column("requests_per_minute", sa.Integer()),
        sa.Column("concurrent_turns", sa.Integer()),
        sa.Column("upload_minutes_per_day", sa.Double()),
        sa.Column("tokens_per_day", sa.Integer()),
        sa.Column("usd_per_day", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        _of_a_workspace("api_keys"),
        schema=schema,
    )
    op.create_index(
        "ix_api_keys_workspace_id_id", "api_keys", ["workspace_id", "id"], schema=schema
    )
    op.create_table(
        "session_tokens",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("key_id", sa.String(8)),
        sa.Column("secret_hash", sa.LargeBinary(32), nullable=False),
        _time("created_at"),
        _time("expires_at"),
        sa.PrimaryKeyConstraint("id", name="pk_session_tokens"),
        sa.ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            _target("sessions", "workspace_id", "id"),
            name="fk_session_tokens_workspace_id_session_id_sessions",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], _target("api_keys", "id"), name="fk_session_tokens_key_id_api_keys"
        ),
        schema=schema,
    )
    op.create_index(
        "ix_session_tokens_workspace_id_session_id",
        "session_tokens",
        ["workspace_id", "session_id"],
        schema=schema,
    )
    op.create_index("ix_session_tokens_expires_at", "session_tokens", ["expires_at"], schema=schema)
    op.create_table(
        "audit_log",
        sa.Column("workspace_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        _time("created_at"),
        sa.Column("actor", sa.String(256), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("target_id", sa.String(64), nullable=False),
        _json("details"),
        sa.PrimaryKeyConstraint("workspace_id", "id", name="pk_audit_log"),
        _of_a_workspace("audit_log"),
        schema=schema,
    )
    _refuse_changes_of_the_log()
    if schema:
        op.execute(_MAKE_ROLE)
        op.execute(_PROTECT_TABLES)


def _refuse_changes_of_the_log() -> None:
    if _schema():
        op.execute(
            """
            CREATE FUNCTION agent_platform.refuse_change() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the audit log only grows'; END $$
            """
        )
        op.execute(
            """
            CREATE TRIGGER audit_log_only_grows
            BEFORE UPDATE OR DELETE OR TRUNCATE ON agent_platform.audit_log
            FOR EACH STATEMENT EXECUTE FUNCTION agent_platform.refuse_change()
            """
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_log_refuses_{change.lower()} BEFORE {change} ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END"
        )


def downgrade() -> None:
    """Drop the tables and policies; the role remains, as other databases may use it."""
    schema = _schema()
    if schema:
        op.execute("DROP FUNCTION agent_platform.protect_tables()")
        op.execute(_UNPROTECT_TABLES)
    for table in ("audit_log", "session_tokens", "api_keys"):
        op.drop_table(table, schema=schema)
    if schema:
        op.execute("DROP FUNCTION agent_platform.refuse_change()")
