"""A database as Supabase hands it out: no superuser, and default privileges for the API's roles."""
# ruff: noqa: S608  # all names are our own

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from app.core.config import Settings
from app.core.database import Database
from app.core.database.migrations import upgrade
from app.core.database.workspace_scope import all_workspaces, workspace_scope
from app.core.security import DEFAULT_WORKSPACE_ID, Caller
from app.services import crud
from tests.support.application import IsolatedSettings
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

OWNER = "project_owner"
"""What `postgres` is in a project: it makes roles and passes over policies, and is no superuser."""
API_ROLES = ("anon", "authenticated", "service_role")
OTHER_WORKSPACE_ID = UUID(int=7)

_ROLES = f"""
CREATE ROLE {OWNER} LOGIN CREATEROLE CREATEDB BYPASSRLS;
CREATE ROLE anon NOLOGIN NOINHERIT;
CREATE ROLE authenticated NOLOGIN NOINHERIT;
CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS;
CREATE ROLE authenticator LOGIN NOINHERIT;
GRANT anon, authenticated, service_role TO authenticator, {OWNER};
"""
_DEFAULT_PRIVILEGES = f"""
GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
GRANT ALL ON SCHEMA public TO {OWNER};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public
    GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public
    GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} IN SCHEMA public
    GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
SET ROLE {OWNER};
CREATE TABLE public.todos (id serial PRIMARY KEY);
CREATE FUNCTION public.hello() RETURNS text LANGUAGE sql AS $$ SELECT 'hello' $$;
"""
_OURS = "agent_platform"
_DOCUMENTS = 6000
_FILL = f"""
SET agent_platform.workspace_id = '*';
INSERT INTO agent_platform.workspaces VALUES ('{OTHER_WORKSPACE_ID}', 'other', now());
INSERT INTO agent_platform.agents (workspace_id, id, name, system_prompt, version, created_at,
    updated_at) SELECT id, id, 'Ada', '', 1, now(), now() FROM agent_platform.workspaces;
INSERT INTO agent_platform.sessions (workspace_id, id, agent_id, metadata, last_seq, created_at,
    updated_at) SELECT id, id, id, '{{}}', 0, now(), now() FROM agent_platform.workspaces;
INSERT INTO agent_platform.messages (workspace_id, session_id, id, seq, role, modality, status,
    content, created_at)
SELECT id, id, gen_random_uuid(), n, 'user', 'text', 'completed', 'some word' || n || CASE
    WHEN n = 3 AND id = '{DEFAULT_WORKSPACE_ID}' THEN ' museum'
    WHEN n = 3 THEN ' dentist' ELSE ' and more' END, now()
FROM agent_platform.workspaces, generate_series(1, {_DOCUMENTS}) n;
"""


@pytest.fixture(scope="module")
def project() -> Iterator[PostgresServer]:
    """A cluster of its own, since roles belong to all databases of one."""
    with PostgresServer(fsync=False) as server:
        server.execute(_ROLES)
        server.execute(f"CREATE DATABASE project OWNER {OWNER}")
        server.execute(_DEFAULT_PRIVILEGES, "project")
        upgrade(_settings(server))
        server.execute(_FILL, "project")
        server.execute("ANALYZE", "project")
        yield server


def _settings(server: PostgresServer) -> Settings:
    return IsolatedSettings(database_url=SecretStr(server.url("project", user=OWNER)))


@pytest.fixture
async def database(project: PostgresServer) -> AsyncIterator[Database]:
    database = Database.from_settings(_settings(project))
    yield database
    await database.dispose()


@asynccontextmanager
async def as_role(project: PostgresServer, role: str | None) -> AsyncGenerator[Any]:
    """Connect as PostgREST does, or as a superuser, in a transaction that is undone."""
    driver: Any = asyncpg  # has no types
    user = "authenticator" if role else "postgres"
    connection = await driver.connect(project.url("project", user=user))
    try:
        transaction = connection.transaction()
        await transaction.start()
        if role:
            await connection.execute(f"SET LOCAL ROLE {role}")
        yield connection
    finally:
        await connection.close()


async def attempts(project: PostgresServer) -> list[str]:
    """Return statements that touch each thing of ours in each way."""
    async with as_role(project, None) as root:
        relations = await root.fetch(
            "SELECT relname, relkind = 'S' AS counts, (SELECT attname FROM pg_attribute "
            "WHERE attrelid = c.oid AND attnum = 1) AS first FROM pg_class c "
            f"WHERE relnamespace = '{_OURS}'::regnamespace AND relkind IN ('r', 'v', 'm', 'S')"
        )
        functions = await root.fetch(
            "SELECT proname, proargtypes::regtype[]::text[] AS types FROM pg_proc "
            f"WHERE pronamespace = '{_OURS}'::regnamespace"
        )
    found: list[str] = []
    for relation in relations:
        table, first = f'{_OURS}."{relation["relname"]}"', f'"{relation["first"]}"'
        found.append(f"SELECT {first} FROM {table}")
        if relation["counts"]:
            found += [f"SELECT nextval('{table}')", f"SELECT setval('{table}', 9)"]
            continue
        found += [
            f"INSERT INTO {table} DEFAULT VALUES",
            f"UPDATE {table} SET {first} = {first}",
            f"DELETE FROM {table}",
            f"TRUNCATE {table} CASCADE",
            f"SELECT count(*) FROM {table}",
            f"COPY {table} TO STDOUT",
        ]
    assert len(relations) > 15
    assert {"sessions_that_say", "protect_tables"} <= {row["proname"] for row in functions}
    for function in functions:
        arguments = ", ".join(f"NULL::{kind}" for kind in function["types"])
        found.append(f"SELECT {_OURS}.{function['proname']}({arguments})")
    return found


@pytest.mark.parametrize("role", API_ROLES)
async def test_key_of_a_project_reaches_what_is_in_public(
    project: PostgresServer, role: str
) -> None:
    """So the privileges that the other tests speak of are there."""
    async with as_role(project, role) as connection:
        await connection.execute("INSERT INTO public.todos DEFAULT VALUES")
        assert await connection.fetchval("SELECT count(*) FROM public.todos") == 1
        assert await connection.fetchval("SELECT public.hello()") == "hello"


@pytest.mark.parametrize("is_published", [False, True], ids=["as it is", "schema published"])
@pytest.mark.parametrize("role", API_ROLES)
async def test_key_of_a_project_reads_and_writes_nothing_of_ours(
    project: PostgresServer, role: str, is_published: bool
) -> None:
    statements = await attempts(project)
    denied = "permission denied for " + ("" if is_published else "schema")
    if is_published:
        async with as_role(project, None) as root:
            await root.execute(f"COMMIT; GRANT USAGE ON SCHEMA {_OURS} TO {role}")
    try:
        async with as_role(project, role) as connection:
            for setting in ("", "*", str(DEFAULT_WORKSPACE_ID)):
                await connection.execute(f"SET LOCAL agent_platform.workspace_id = '{setting}'")
                for statement in statements:
                    with pytest.raises(asyncpg.InsufficientPrivilegeError) as refusal:
                        async with connection.transaction():
                            await connection.execute(statement)
                    assert denied in str(refusal.value), statement
    finally:
        async with as_role(project, None) as root:
            await root.execute(f"COMMIT; REVOKE USAGE ON SCHEMA {_OURS} FROM {role}")


@pytest.mark.parametrize("role", API_ROLES)
async def test_key_of_a_project_becomes_no_role_of_ours(project: PostgresServer, role: str) -> None:
    for wanted in ("agent_platform_app", OWNER):
        async with as_role(project, role) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"SET ROLE {wanted}")


async def test_nothing_of_ours_is_in_public(project: PostgresServer) -> None:
    async with as_role(project, None) as root:
        rows = await root.fetch(
            "SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind IN ('r', 'v', 'm', 'S') UNION ALL "
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        )
    assert {row["name"] for row in rows} == {"todos", "todos_id_seq", "hello"}


async def test_project_is_served_as_a_role_that_the_policies_bind(database: Database) -> None:
    with workspace_scope(OTHER_WORKSPACE_ID):
        async with database.reading() as db:
            assert await db.scalar(text("SELECT current_user")) == "agent_platform_app"
            seen = await db.scalar(text("SELECT count(*) FROM agent_platform.messages"))
    assert seen == _DOCUMENTS


_SCANS = text("SELECT pg_stat_get_xact_numscans('agent_platform.ix_messages_search'::regclass)")


async def found(database: Database, workspace_id: UUID, words: str) -> tuple[list[UUID], int]:
    """Search as a request does; return the sessions, and how often the index was read."""
    with workspace_scope(workspace_id):
        async with database.reading() as db:
            scans_before = await db.scalar(_SCANS) or 0
            sessions = await crud.list_sessions(
                db,
                Caller(workspace_id),
                crud.SessionFilter(search=words),
                limit=9,
            )
            scans = (await db.scalar(_SCANS) or 0) - scans_before
    return [session.id for session in sessions], scans


async def test_search_reads_its_index_and_finds_what_is_of_the_workspace_alone(
    database: Database,
) -> None:
    own, other = DEFAULT_WORKSPACE_ID, OTHER_WORKSPACE_ID
    for workspace_id, words, expected in (
        (own, "museum", [own]),
        (own, "MUSEUM word3", [own]),
        (own, "dentist", []),
        (own, "museum word4", []),
        (own, "some", [own]),
        (other, "dentist", [other]),
        (other, "museum", []),
        (other, f"museum' | 'in {own}", []),
        (other, f"in {own}", []),
        (other, f"'in {own}'", []),
    ):
        sessions, scans = await found(database, workspace_id, words)
        assert (sessions, scans) == (expected, 1), words
    assert await found(database, own, "!!") == ([], 0), "words that are none find nothing"
    assert (await found(database, UUID(int=9), "some"))[0] == []


async def test_search_without_a_workspace_finds_nothing(database: Database) -> None:
    search = text("SELECT agent_platform.sessions_that_say('some')")
    with all_workspaces():
        async with database.reading() as db:
            assert (await db.scalars(search)).all() == []
            await db.execute(text("RESET agent_platform.workspace_id"))
            assert (await db.scalars(search)).all() == []


async def test_plan_of_the_search_is_the_index_with_the_workspace_in_it(
    project: PostgresServer,
) -> None:
    async with as_role(project, None) as root:
        body = await root.fetchval("SELECT prosrc FROM pg_proc WHERE proname = 'sessions_that_say'")
        await root.execute(f"SET LOCAL ROLE {OWNER}")
        await root.execute(f"SET LOCAL agent_platform.workspace_id = '{DEFAULT_WORKSPACE_ID}'")
        await root.execute("SET LOCAL plan_cache_mode = force_generic_plan")  # as in a function
        await root.execute(f"PREPARE search(text) AS {body.replace('words', '$1')}")
        rows = await root.fetch("EXPLAIN (ANALYZE, TIMING OFF) EXECUTE search('museum')")
    plan = "\n".join(row[0] for row in rows)

    assert "Bitmap Index Scan on ix_messages_search" in plan
    assert "Seq Scan" not in plan
    assert "Heap Blocks: exact=1\n" in plan, "it reads the one message that was meant"
