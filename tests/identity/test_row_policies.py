"""The second lock: on Postgres, a transaction sees its workspace alone, whatever it asks for."""

from http import HTTPStatus
from uuid import UUID

import anyio
import anyio.to_thread
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.config import Settings
from app.core.database import Database
from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.database.workspace_scope import all_workspaces, workspace_scope
from app.core.security import DEFAULT_WORKSPACE_ID
from app.models import Agent, Base
from tests.conftest import Postgres
from tests.identity.world import ADMIN, World
from tests.support.application import IsolatedSettings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.parametrize("settings", ["postgres"], indirect=True),  # SQLite has no policies
]

FORGETFUL = text("SELECT count(*) FROM agent_platform.agents")


def forgetful() -> TransactionScript[int]:
    """Ask for agents, and forget to say whose."""
    from sqlalchemy import func, select

    rows = yield from fetch_one(
        PreparedStatement(lambda _dialect: select(func.count()).select_from(Agent))()
    )
    return rows[0][0]


async def agents_seen(database: Database) -> int:
    async with database.reading() as db:
        seen = await db.scalar(FORGETFUL)
    assert await database.run(forgetful) == seen
    return seen or 0


async def test_forgotten_condition_shows_no_other_workspace(
    world: World, database: Database
) -> None:
    other = UUID(world.other_workspace_id)
    in_other = ADMIN | {"X-Workspace-Id": world.other_workspace_id}
    await world.things(in_other)
    await world.things(in_other)

    with workspace_scope(DEFAULT_WORKSPACE_ID):
        assert await agents_seen(database) == 1  # that of the world itself
    with workspace_scope(other):
        assert await agents_seen(database) == 2
        with all_workspaces():
            assert await agents_seen(database) == 3
    assert await agents_seen(database) == 3


async def test_transaction_cannot_write_into_another_workspace(
    world: World, database: Database
) -> None:
    things = await world.things()
    with workspace_scope(UUID(world.other_workspace_id)):
        with pytest.raises(DBAPIError, match="row-level security"):
            async with database.transaction() as db:
                await db.execute(
                    text(
                        "INSERT INTO agent_platform.audit_log VALUES "
                        "(:w, gen_random_uuid(), now(), 'x', 'x', 'x', '{}')"
                    ),
                    {"w": DEFAULT_WORKSPACE_ID},
                )
        async with database.transaction() as db:
            await db.execute(text("UPDATE agent_platform.agents SET name = 'stolen'"))
            await db.execute(text("DELETE FROM agent_platform.messages"))
    history = await world.client.get(f"/sessions/{things.session_id}", headers=ADMIN)
    assert len(history.json()["messages"]) == 2
    agent = await world.client.get(f"/agents/{things.agent_id}", headers=ADMIN)
    assert agent.json()["name"] == "Ada"


async def test_every_table_is_protected(database: Database) -> None:
    async with database.reading() as db:
        rows = await db.execute(
            text(
                "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity "
                "AND p.qual IS NOT NULL FROM pg_class c "
                "LEFT JOIN pg_policies p ON p.tablename = c.relname "
                "WHERE c.relnamespace = 'agent_platform'::regnamespace AND c.relkind = 'r'"
            )
        )
        protected = {row[0]: row[1] for row in rows}
    tables = {table.name for table in Base.metadata.sorted_tables}

    assert set(protected) == tables | {"alembic_version"}
    assert [name for name in tables if not protected[name]] == []


async def test_requests_run_as_a_role_that_owns_nothing(database: Database) -> None:
    async with database.reading() as db:
        role, owner, privileged = (
            await db.execute(
                text(
                    "SELECT current_user, tableowner, r.rolsuper OR r.rolbypassrls "
                    "FROM pg_tables JOIN pg_roles r ON r.rolname = current_user "
                    "WHERE schemaname = 'agent_platform' LIMIT 1"
                )
            )
        ).one()
    assert role == "agent_platform_app" != owner
    assert not privileged


async def test_role_of_the_server_cannot_rewrite_the_audit_log_or_the_schema(
    database: Database,
) -> None:
    await agents_seen(database)
    for statement in (
        "DELETE FROM agent_platform.audit_log",
        "UPDATE agent_platform.alembic_version SET version_num = '9'",
        "DROP TABLE agent_platform.agents",
        "ALTER TABLE agent_platform.agents DISABLE ROW LEVEL SECURITY",
        "TRUNCATE agent_platform.messages CASCADE",
    ):
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            async with database.transaction() as db:
                await db.execute(text(statement))


async def test_connection_without_a_workspace_sees_nothing(
    world: World, postgres: Postgres, settings: Settings
) -> None:
    """As somebody would who has the server's role, or a Supabase project's anonymous key."""
    await world.things()
    assert settings.database_url is not None
    name = settings.database_url.get_secret_value().rpartition("/")[2].partition("?")[0]
    run = postgres.server.execute
    probe = """
        DO $$ BEGIN
            {role};
            IF (SELECT count(*) FROM agent_platform.agents) > 0 THEN
                RAISE EXCEPTION 'it sees agents';
            END IF;
        END $$
    """
    await anyio.to_thread.run_sync(run, probe.format(role="SET ROLE agent_platform_app"), name)
    await anyio.to_thread.run_sync(
        run,
        "DO $$ BEGIN CREATE ROLE anon NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        name,
    )
    with pytest.raises(Exception, match="permission denied for schema agent_platform"):
        await anyio.to_thread.run_sync(run, probe.format(role="SET ROLE anon"), name)


async def test_owner_without_special_rights_is_held_by_the_policies_too(
    postgres: Postgres, settings: Settings
) -> None:
    """Such as an account that may not make roles: it migrates, serves, and stays confined."""
    from app.core.database.migrations import upgrade

    assert settings.database_url is not None
    server = postgres.server

    def prepare() -> None:
        server.drop_database("owned")
        server.execute(
            "DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
        )
        server.execute("CREATE DATABASE owned OWNER plain")
        url = SecretStr(server.url("owned", user="plain"))
        upgrade(IsolatedSettings(database_url=url))

    await anyio.to_thread.run_sync(prepare)
    database = Database.from_settings(
        IsolatedSettings(database_url=SecretStr(server.url("owned", user="plain")))
    )
    async with database.transaction() as db:
        assert await db.scalar(text("SELECT current_user")) == "plain"
        await db.execute(
            text(
                "INSERT INTO agent_platform.agents (workspace_id, id, name, system_prompt, "
                "version, created_at, updated_at) "
                "VALUES (:w, gen_random_uuid(), 'A', '', 1, now(), now())"
            ),
            {"w": DEFAULT_WORKSPACE_ID},
        )
    with workspace_scope(DEFAULT_WORKSPACE_ID):
        assert await agents_seen(database) == 1
    with workspace_scope(UUID(int=7)):
        assert await agents_seen(database) == 0
    await database.dispose()
    await anyio.to_thread.run_sync(server.drop_database, "owned")


async def test_export_and_search_work_behind_the_policies(world: World) -> None:
    things = await world.things()

    found = await world.client.get("/sessions?q=hello", headers=world.callers["key"])
    export = await world.client.get(
        f"/sessions/{things.session_id}/export", headers=world.callers["key"]
    )

    assert things.session_id in found.text
    assert export.status_code == HTTPStatus.OK
