"""The servers that other tests and fault suites stand on."""

import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from tests.conftest import Postgres
from tests.support.postgres import PgBouncer, PostgresServer, ServerFailed
from tests.support.postgres_programs import find_pgbouncer, find_postgres, wheel_folders
from tests.support.recycled_databases import RecycledDatabases
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def bouncer(server: PostgresServer) -> Iterator[PgBouncer]:
    with PgBouncer(server) as bouncer:
        yield bouncer


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any]:
    """A connection as a pooler needs it. Its type is `Any`, as asyncpg has no stubs."""
    driver: Any = asyncpg
    connection = await driver.connect(url, statement_cache_size=0, timeout=10)
    try:
        yield connection
    finally:
        connection.terminate()


async def value(url: str, sql: str) -> object:
    async with connected(url) as connection:
        return await connection.fetchval(sql)


async def test_both_answer_a_query(server: PostgresServer, bouncer: PgBouncer) -> None:
    assert await value(server.url(), "SELECT current_user || 42") == "postgres42"
    assert await value(bouncer.url(), "SELECT current_user || 42") == "postgres42"


async def test_two_clients_of_the_pooler_take_turns_on_one_connection(bouncer: PgBouncer) -> None:
    async with connected(bouncer.url()) as one, connected(bouncer.url()) as other:
        backends = {
            await client.fetchval("SELECT pg_backend_pid()") for client in (one, other, one, other)
        }
    assert len(backends) == 1


async def test_a_setting_leaks_to_the_next_client_of_the_pooler(bouncer: PgBouncer) -> None:
    async with connected(bouncer.url()) as one, connected(bouncer.url()) as other:
        await one.execute("SET app.leak = 'mine'")
        assert await other.fetchval("SELECT current_setting('app.leak', true)") == "mine"
        await one.execute("RESET app.leak")


async def test_more_clients_than_server_connections_are_served(server: PostgresServer) -> None:
    with PgBouncer(server, pool_size=2) as bouncer:
        answers: list[object] = []

        async def ask() -> None:
            answers.append(await value(bouncer.url(), "SELECT 1"))

        async with anyio.create_task_group() as clients:
            for _ in range(50):
                clients.start_soon(ask)
    assert answers == [1] * 50


async def test_a_template_is_copied_and_the_copy_can_be_dropped(server: PostgresServer) -> None:
    server.create_database("template_of_copy")
    server.execute("CREATE TABLE kept AS SELECT 7 AS number", "template_of_copy")
    server.create_database("copy", template="template_of_copy")
    async with connected(server.url("copy")) as in_use:
        assert await in_use.fetchval("SELECT number FROM kept") == 7
        server.drop_database("copy")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await value(server.url("copy"), "SELECT 1")


async def test_wrong_sql_says_what_is_wrong(server: PostgresServer) -> None:
    with pytest.raises(ServerFailed, match="syntax error"):
        server.execute("NONSENSE")


async def test_a_restart_keeps_the_address_and_the_data(
    server: PostgresServer, bouncer: PgBouncer
) -> None:
    server.execute("CREATE TABLE survivors AS SELECT 1 AS number")
    url, before = server.url(), server.pid
    server.restart()
    bouncer.restart()
    assert (server.url(), server.pid != before) == (url, True)
    assert await value(bouncer.url(), "SELECT number FROM survivors") == 1


async def test_a_kill_cuts_clients_and_loses_nothing_committed(server: PostgresServer) -> None:
    async with connected(server.url()) as client:
        await client.execute("CREATE TABLE committed AS SELECT 2 AS number")
        server.kill()
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await client.fetchval("SELECT 1")
    with pytest.raises(OSError):  # noqa: PT011  # its number differs between systems
        await value(server.url(), "SELECT 1")
    server.start()
    assert await value(server.url(), "SELECT number FROM committed") == 2


@pytest.mark.parametrize("frozen", ["server", "bouncer"])
async def test_a_frozen_server_answers_when_it_is_thawed(
    frozen: str, server: PostgresServer, bouncer: PgBouncer
) -> None:
    part = server if frozen == "server" else bouncer
    async with connected(bouncer.url()) as client:
        answered = anyio.Event()

        async def ask() -> None:
            await client.fetchval("SELECT 1")
            answered.set()

        part.freeze()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            with anyio.move_on_after(0.3):
                await answered.wait()
            assert not answered.is_set()
            part.thaw()
            with anyio.fail_after(60):
                await answered.wait()


async def test_a_frozen_server_can_be_killed_and_started(server: PostgresServer) -> None:
    server.freeze()
    server.kill()
    server.start()
    assert await value(server.url(), "SELECT 1") == 1


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        ("raise SystemExit(3)", 3),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.kill(os.getpid(), 15)", -15),
    ],
    ids=["fails", "is killed", "is terminated"],
)
async def test_a_script_leaves_no_process_and_no_file_where_it(end: str, exit_code: int) -> None:
    for find_program in (find_postgres, find_pgbouncer):
        find_program()
    script = f"""
import os
from tests.support.postgres import PgBouncer, PostgresServer
server = PostgresServer(fsync=False)
server.start()
bouncer = PgBouncer(server)
bouncer.start()
bouncer.freeze()
print(server.pid, bouncer.pid, server.folder, bouncer.folder, flush=True)
{end}
"""
    ended = await anyio.run_process([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert ended.returncode == exit_code, ended.stderr
    *pids, server_folder, bouncer_folder = ended.stdout.decode().split()
    await until(lambda: not (Path(server_folder).exists() or Path(bouncer_folder).exists()))
    still_there = await anyio.run_process(["ps", "-p", ",".join(pids)], check=False)
    assert still_there.returncode == 1


async def test_the_postgres_of_the_wheel_works_as_well() -> None:
    programs = next((folder for folder in wheel_folders() if folder.is_dir()), None)
    if programs is None or programs == find_postgres():
        pytest.skip("either not installed, or what the other tests use")
    with PostgresServer(fsync=False, programs=programs) as server:
        assert await value(server.url(), "SELECT 1") == 1


@pytest.fixture
def databases(
    postgres: Postgres, postgres_template: str
) -> Iterator[tuple[PostgresServer, RecycledDatabases]]:
    databases = RecycledDatabases(postgres.server, postgres_template)
    yield postgres.server, databases
    databases.close()


def test_database_whose_rows_were_changed_is_as_it_was_and_used_again(
    databases: tuple[PostgresServer, RecycledDatabases],
) -> None:
    server, recycled = databases
    name = recycled.take()
    before = rows_of(server, name)
    server.execute("UPDATE agent_platform.workspaces SET name = 'other'", name)
    server.execute(
        "INSERT INTO agent_platform.workspaces (id, name, created_at) "
        "VALUES (gen_random_uuid(), 'more', now())",
        name,
    )
    assert rows_of(server, name) != before

    recycled.give_back(name)

    assert recycled.take() == name
    assert rows_of(server, name) == before
    recycled.give_back(name)


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE agent_platform.more (id int)",
        "DROP INDEX agent_platform.ix_turns_lease",
        "ALTER TABLE agent_platform.turns ALTER COLUMN status DROP NOT NULL",
        "GRANT SELECT ON agent_platform.turns TO PUBLIC",
        "ANALYZE agent_platform.workspaces",
    ],
)
def test_database_that_was_changed_otherwise_is_dropped(
    databases: tuple[PostgresServer, RecycledDatabases], change: str
) -> None:
    server, recycled = databases
    name = recycled.take()
    server.execute(change, name)

    recycled.give_back(name)

    with pytest.raises(ServerFailed, match="does not exist"):
        server.execute("SELECT 1", name)
    other = recycled.take()
    assert other != name
    recycled.give_back(other)


async def test_database_that_is_still_used_is_dropped(
    databases: tuple[PostgresServer, RecycledDatabases],
) -> None:
    server, recycled = databases
    name = await anyio.to_thread.run_sync(recycled.take)
    async with connected(server.url(name)) as connection:
        await connection.execute("BEGIN; SELECT FROM agent_platform.turns")
        await anyio.to_thread.run_sync(recycled.give_back, name)

    assert await anyio.to_thread.run_sync(recycled.take) != name


def test_new_database_is_one_that_nobody_used(
    databases: tuple[PostgresServer, RecycledDatabases],
) -> None:
    _, recycled = databases
    name = recycled.take()
    recycled.give_back(name)

    new = recycled.take(new=True)

    assert new != name
    recycled.give_back(new)
    assert recycled.take() == name


def rows_of(server: PostgresServer, name: str) -> str:
    """Return the workspaces of a database."""
    query = "SELECT id, name FROM agent_platform.workspaces ORDER BY id"
    command = [server.programs / "psql", "-qAt", "-c", query, server.url(name)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
