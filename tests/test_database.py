"""The database underneath: migrations, the gate, commits, outages, and one process per file."""

import gc
import os
import re
import sqlite3
import sys
from contextlib import closing
from functools import partial
from http import HTTPStatus
from pathlib import Path

import anyio
import httpx2
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import text

from app.core.config import Settings
from app.core.database import Database, StorageUnavailable
from app.core.database.file_lock import DatabaseInUse, exclusive_file_lock
from app.core.database.migrations import upgrade
from app.core.database.revision import (
    REVISION,
    DatabaseNotMigrated,
    RevisionCheck,
    current_revision,
)
from app.core.database.url import DatabaseUrl
from app.core.errors import StartRefused
from app.models import Base
from app.state import prepare
from tests.conftest import Postgres
from tests.support.application import IsolatedSettings
from tests.support.planted_secrets import SAID
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent


def alembic_config(settings: Settings) -> Config:
    return Config(ROOT / "alembic.ini", attributes={"settings": settings})


def test_newest_migration_is_the_one_that_the_program_needs() -> None:
    assert ScriptDirectory.from_config(Config(ROOT / "alembic.ini")).get_heads() == [REVISION]


async def test_models_and_migrations_agree(settings: Settings) -> None:
    await anyio.to_thread.run_sync(command.check, alembic_config(settings))


async def test_partial_indexes_are_of_the_rows_that_the_models_say(database: Database) -> None:
    said = {
        str(index.name): index.info["where"]
        for table in Base.metadata.tables.values()
        for index in table.indexes
        if index.info
    }
    predicates = (
        "SELECT name, substr(sql, instr(sql, ' WHERE ')) FROM sqlite_master"
        " WHERE type = 'index' AND sql LIKE '% WHERE %'"
        if database.is_sqlite
        else "SELECT relname, pg_get_expr(indpred, indrelid)"
        " FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE indpred IS NOT NULL"
        " AND relnamespace = 'agent_platform'::regnamespace"
    )
    async with database.reading() as db:
        found = {str(name): str(where) for name, where in await db.execute(text(predicates))}

    def statuses(by_name: dict[str, str]) -> dict[str, set[str]]:
        return {name: set(re.findall(r"'(\w+)'", where)) for name, where in by_name.items()}

    assert statuses(found) == statuses(said)
    assert len(said) == 10


async def test_migrations_can_be_undone_and_done_again(settings: Settings) -> None:
    await anyio.to_thread.run_sync(command.downgrade, alembic_config(settings), "base")
    database = Database.from_settings(settings)
    with pytest.raises(DatabaseNotMigrated, match="alembic upgrade head"):
        await RevisionCheck(database).require()

    await anyio.to_thread.run_sync(upgrade, settings)

    await RevisionCheck(database).require()
    assert await current_revision(database) == REVISION
    await database.dispose()


@pytest.mark.postgres
async def test_two_servers_that_upgrade_at_once_do_so_one_after_the_other(
    postgres: Postgres, tmp_path: Path
) -> None:
    postgres.server.create_database("empty_at_first")
    url = SecretStr(postgres.pooler.url("empty_at_first"))
    settings = IsolatedSettings(data_dir=tmp_path, database_url=url)

    environment = os.environ | {"DATABASE_URL": url.get_secret_value()}
    async with anyio.create_task_group() as group:
        for _ in range(3):
            alembic = [sys.executable, "-m", "alembic", "upgrade", "head"]
            group.start_soon(partial(anyio.run_process, alembic, cwd=ROOT, env=environment))

    database = Database.from_settings(settings)
    assert await current_revision(database) == REVISION
    async with database.reading() as db:
        public = await db.scalar(text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))
    assert public == 0
    await database.dispose()
    postgres.server.drop_database("empty_at_first")


async def test_request_at_a_wrong_revision_is_503_until_it_is_right(
    client: httpx2.AsyncClient, settings: Settings
) -> None:
    await anyio.to_thread.run_sync(command.downgrade, alembic_config(settings), "base")

    refused = await client.get("/agents")
    ready = await client.get("/health/ready")

    assert refused.status_code == ready.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert refused.json()["code"] == "database-not-migrated"
    assert int(refused.headers["retry-after"]) >= 1
    assert (await client.get("/health/live")).status_code == HTTPStatus.OK

    await anyio.to_thread.run_sync(upgrade, settings)

    async def serves() -> bool:
        return (await client.get("/agents")).status_code == HTTPStatus.OK

    await until(serves)


async def test_database_of_a_newer_version_is_refused_with_a_sentence(tmp_path: Path) -> None:
    settings = IsolatedSettings(data_dir=tmp_path)
    await anyio.to_thread.run_sync(upgrade, settings)
    with closing(sqlite3.connect(settings.parsed_database_url.sqlite_path or "")) as file, file:
        file.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StartRefused, match=r"revision 9999, .* a newer version has upgraded it"):
        await prepare(settings)


async def test_nothing_is_stored_when_the_block_fails(database: Database) -> None:
    schema = "" if database.is_sqlite else "agent_platform."
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # the block is what is tested
        async with database.transaction() as db:
            await db.execute(text(f"DELETE FROM {schema}workspaces"))  # noqa: S608
            raise ZeroDivisionError

    async with database.reading() as db:
        assert await db.scalar(text(f"SELECT count(*) FROM {schema}workspaces")) == 1  # noqa: S608


async def test_sixteen_writers_at_once_lose_no_update(database: Database) -> None:
    schema = "" if database.is_sqlite else "agent_platform."
    async with database.transaction() as db:
        await db.execute(text(f"UPDATE {schema}workspaces SET name = '0'"))  # noqa: S608

    async def increment() -> None:
        for _ in range(10):
            async with database.transaction() as db:
                lock = "" if database.is_sqlite else " FOR UPDATE"
                found = await db.scalar(text(f"SELECT name FROM {schema}workspaces{lock}"))  # noqa: S608
                await db.execute(
                    text(f"UPDATE {schema}workspaces SET name = :n"),  # noqa: S608
                    {"n": str(int(found) + 1)},
                )

    async with anyio.create_task_group() as group:
        for _ in range(16):
            group.start_soon(increment)

    async with database.reading() as db:
        assert await db.scalar(text(f"SELECT name FROM {schema}workspaces")) == "160"  # noqa: S608


async def test_sqlite_file_has_the_safety_that_we_ask_for(sqlite_template: Path) -> None:
    database = Database(DatabaseUrl(sqlite_path=sqlite_template))
    async with database.reading() as db:
        pragmas = [
            await db.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    await database.dispose()

    assert pragmas == ["wal", 2, 1, 5000]


def test_second_process_on_one_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    with (
        exclusive_file_lock(path),
        pytest.raises(DatabaseInUse, match="DATA_DIR"),
        exclusive_file_lock(path),
    ):
        pass

    with exclusive_file_lock(path):
        pass


async def test_database_that_is_not_there_is_storage_unavailable() -> None:
    database = Database(DatabaseUrl.parse(SecretStr("postgresql://u:p@127.0.0.1:9/x"), Path()))

    with pytest.raises(StorageUnavailable):
        async with database.reading() as db:
            await db.execute(text("SELECT 1"))
    await database.dispose()


@pytest.mark.postgres
async def test_request_while_postgres_is_away_is_503_and_serves_again_after(
    postgres: Postgres, settings: Settings, client: httpx2.AsyncClient
) -> None:
    if settings.database_url is None:
        pytest.skip("a file is never away")
    assert (await client.get("/agents")).status_code == HTTPStatus.OK
    await anyio.to_thread.run_sync(postgres.server.stop)
    try:
        refused = await client.post("/agents", json={"name": "Ada"})
    finally:
        await anyio.to_thread.run_sync(postgres.server.start)

    assert refused.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert refused.json()["code"] == "storage-unavailable"

    async def serves_again() -> bool:
        return (await client.get("/agents")).status_code == HTTPStatus.OK

    await until(serves_again)


_REFUSING = {
    "sqlite": "CREATE TRIGGER refuse_{table} BEFORE {when} ON {table} "
    "WHEN NEW.{column} LIKE 'refused%' BEGIN SELECT RAISE(ABORT, 'refused'); END",
    "postgresql": "ALTER TABLE agent_platform.{table} ADD CHECK ({column} NOT LIKE 'refused%')",
}


async def test_row_that_the_database_refuses_is_not_in_the_log(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bug's traceback has what the driver says, and drivers quote what they were given."""
    for table, column, when in (("messages", "content", "INSERT"), ("sessions", "title", "UPDATE")):
        async with database.connection() as owner:
            words = _REFUSING[owner.dialect.name]
            await owner.execute(text(words.format(table=table, column=column, when=when)))
    said = f"refused {SAID}-in-a-row"

    answers = [
        await client.post("/messages/text", json={"session_id": session_id, "content": said}),
        await client.patch(f"/sessions/{session_id}", json={"title": said}),
    ]

    assert [answer.status_code for answer in answers] == [500, 500]
    assert caplog.text.count("Traceback") >= 2
    assert SAID not in caplog.text


async def test_connection_that_is_in_use_is_closed_as_well(settings: Settings) -> None:
    database = Database.from_settings(settings)
    asked, is_closing = anyio.Event(), anyio.Event()
    answers: list[int | None] = []

    async def ask() -> None:
        async with database.reading() as db:
            await db.scalar(text("SELECT 1"))
            asked.set()
            await is_closing.wait()
            answers.append(await db.scalar(text("SELECT 2")))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await asked.wait()
        group.start_soon(database.dispose)
        await anyio.lowlevel.checkpoint()
        is_closing.set()

    gc.collect()  # says so where a connection is given up
    assert answers == [2]
