"""Programs: transactions at the driver, alone and many to a commit."""

import shutil
import sqlite3
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from pydantic import SecretStr
from sqlalchemy import Dialect, Integer, Text, bindparam, column, func, insert, select, text
from sqlalchemy.sql import ClauseElement

from app.core.database import Database, StorageUnavailable
from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.database.url import DatabaseUrl
from app.models import Workspace, new_id, utc_now
from app.services.turns.storage.tables import same_named_parameters
from tests.conftest import Postgres
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


def _count(_dialect: Dialect) -> ClauseElement:
    return select(func.count()).select_from(Workspace)


def _add(_dialect: Dialect) -> ClauseElement:
    return insert(Workspace).values(**same_named_parameters("id", "name", "created_at"))


def _named(_dialect: Dialect) -> ClauseElement:
    name = Workspace.name == bindparam("name_")
    return select(func.count()).select_from(Workspace).where(name)


def _transaction(_dialect: Dialect) -> ClauseElement:
    return select(func.pg_current_xact_id().cast(Text))


COUNT = PreparedStatement(_count)
NAMED = PreparedStatement(_named)
TRANSACTION = PreparedStatement(_transaction)
ADD = PreparedStatement(_add)


class Refused(Exception):
    """What a program raises that takes its work back."""


def add_workspace(*, refuse: bool = False) -> TransactionScript[int]:
    """Add a row and return how many there are, or refuse."""
    yield [ADD(id=new_id(), name="w", created_at=utc_now())]
    ((count,),) = yield from fetch_one(COUNT())
    if refuse:
        raise Refused
    return count


def count_workspaces() -> TransactionScript[int]:
    ((count,),) = yield from fetch_one(COUNT())
    return count


async def test_program_commits_and_one_that_raises_leaves_nothing(database: Database) -> None:
    before = await database.run(count_workspaces)

    assert await database.run(add_workspace) == before + 1
    with pytest.raises(Refused):
        await database.run(add_workspace, refuse=True)

    assert await database.run(count_workspaces) == before + 1
    assert database.checked_out() == 0


async def test_programs_at_once_fail_alone(database: Database) -> None:
    before = await database.run(count_workspaces)
    refused = 0

    async def add(number: int) -> None:
        nonlocal refused
        try:
            await database.run(add_workspace, refuse=number % 3 == 0)
        except Refused:
            refused += 1

    async with anyio.create_task_group() as group:
        for number in range(90):
            group.start_soon(add, number)

    assert refused == 30
    assert await database.run(count_workspaces) == before + 60


@pytest.mark.parametrize("refused_each", [1000, 7])
async def test_programs_with_other_locks_share_transactions_and_fail_alone(
    database: Database, refused_each: int
) -> None:
    before = await database.run(count_workspaces)
    transactions: set[object] = set()
    refused = 0

    def add(number: int) -> TransactionScript[None]:
        yield [ADD(id=new_id(), name=f"w{number}", created_at=utc_now())]
        if not database.is_sqlite:
            ((transaction,),) = yield from fetch_one(TRANSACTION())
            transactions.add(transaction)
        ((count,),) = yield from fetch_one(NAMED(name_=f"w{number}"))
        assert count == 1  # its own row and no other's
        if number % refused_each == refused_each - 1:
            raise Refused

    async def run(number: int) -> None:
        nonlocal refused
        try:
            await database.run_batched((str(number),), lambda: add(number))
        except Refused:
            refused += 1

    async with anyio.create_task_group() as group:
        for number in range(70):
            group.start_soon(run, number)

    assert refused == 70 // refused_each
    assert await database.run(count_workspaces) == before + 70 - refused
    assert database.checked_out() == 0
    if not database.is_sqlite and not refused:
        assert len(transactions) < 20


async def test_programs_with_one_lock_do_not_share_a_transaction(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has one transaction at a time, in which programs follow each other")
    transactions: list[object] = []

    def see_transaction() -> TransactionScript[None]:
        ((transaction,),) = yield from fetch_one(TRANSACTION())
        transactions.append(transaction)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(database.run_batched, ("same",), see_transaction)

    assert len(set(transactions)) == 10


async def test_programs_and_sessions_share_the_database(database: Database) -> None:
    before = await database.run(count_workspaces)

    async def add_by_session() -> None:
        async with database.transaction() as db:
            db.add(Workspace(name="w"))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(add_by_session)
            group.start_soon(database.run, add_workspace)

    assert await database.run(count_workspaces) == before + 40


@pytest.fixture
def sqlite_file(sqlite_template: Path, tmp_path: Path) -> Path:
    """A migrated file that the test may change."""
    return Path(shutil.copy(sqlite_template, tmp_path))


async def test_sqlite_waits_for_a_writer_of_another_process(sqlite_file: Path) -> None:
    database = Database(DatabaseUrl(sqlite_path=sqlite_file))
    before = await database.run(count_workspaces)
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as group:
            group.start_soon(database.run, add_workspace)
            await anyio.sleep(0.05)  # the loop is not held up meanwhile
            other.execute("ROLLBACK")

    assert await database.run(count_workspaces) == before + 1
    await database.dispose()


async def test_full_disk_fails_every_program_of_the_commit(sqlite_file: Path) -> None:
    database = Database(DatabaseUrl(sqlite_path=sqlite_file))
    before = await database.run(count_workspaces)

    def limit_pages(count: int) -> TransactionScript[None]:
        pragma = text(f"PRAGMA max_page_count={count}").columns(column("count", Integer))
        yield from fetch_one(PreparedStatement(lambda _dialect: pragma)())

    await database.run(limit_pages, 1)  # it stays as large as it is
    failed = 0

    async def add() -> None:
        nonlocal failed
        try:
            for _ in range(300):
                await database.run(add_workspace)
        except StorageUnavailable:
            failed += 1

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(add)
    await database.run(limit_pages, 1_000_000)

    assert failed == 4
    assert await database.run(add_workspace) > before
    await database.dispose()


@pytest.mark.postgres
async def test_statements_are_prepared_on_postgres_alone(postgres: Postgres) -> None:
    prepared: dict[str, int] = {}
    for name, url in {
        "server": postgres.server.url("postgres"),
        "pooler": postgres.pooler.url("postgres"),
    }.items():
        database = Database(DatabaseUrl.parse(SecretStr(url), Path()))

        def prepared_statements() -> TransactionScript[int]:
            for _ in range(3):
                yield [NOW()]
            ((count,),) = yield from fetch_one(PREPARED())
            return count

        prepared[name] = await database.run(prepared_statements)
        await database.dispose()

    assert prepared["server"] > 0
    assert prepared["pooler"] == 0


@pytest.mark.postgres
async def test_program_outlives_a_restart_of_postgres(postgres: Postgres) -> None:
    database = Database(DatabaseUrl.parse(SecretStr(postgres.server.url("postgres")), Path()))

    def now() -> TransactionScript[object]:
        ((found,),) = yield from fetch_one(NOW())
        return found

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(database.run, now)
    await anyio.to_thread.run_sync(postgres.server.stop)
    with pytest.raises(StorageUnavailable):
        await database.run(now)
    await anyio.to_thread.run_sync(postgres.server.start)

    assert await database.run(now)
    await database.dispose()


def _now(_dialect: Dialect) -> ClauseElement:
    return select(func.now())


def _prepared(_dialect: Dialect) -> ClauseElement:
    statements = func.pg_prepared_statement().table_valued("name")
    return select(func.count()).select_from(statements).where(statements.c.name != "")


NOW = PreparedStatement(_now)
PREPARED = PreparedStatement(_prepared)


MINE: ContextVar[str] = ContextVar("mine", default="nobody's")


@pytest.mark.parametrize("others", [0, 5])
async def test_program_is_finished_where_its_caller_leaves(database: Database, others: int) -> None:
    told: list[tuple[str, int]] = []

    def add(name: str) -> TransactionScript[int]:
        yield [ADD(id=new_id(), name=name, created_at=utc_now())]
        ((count,),) = yield from fetch_one(NAMED(name_=name))
        return count

    async def run_and_leave() -> None:
        MINE.set("the caller's")
        await database.run_batched(
            ("a",), lambda: add("left"), lambda count: told.append((MINE.get(), count))
        )

    await database.run_batched(("a",), lambda: add("first"))  # after it nothing has to be looked up
    async with anyio.create_task_group() as group:
        for number in range(others):
            name = f"w{number}"
            group.start_soon(database.run_batched, (name,), lambda name=name: add(name))
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as leaving:
                leaving.start_soon(run_and_leave)
                await anyio.lowlevel.checkpoint()
                scope.cancel()

    await until(lambda: told)
    assert told == [("the caller's", 1)]


async def test_what_follows_from_a_program_may_fail(database: Database) -> None:
    def add() -> TransactionScript[None]:
        yield [ADD(id=new_id(), name="added", created_at=utc_now())]

    def refuse(_: None) -> None:
        raise Refused

    with pytest.raises(Refused):
        await database.run_batched(("a",), add, refuse)

    assert await database.run_batched(("a",), lambda: fetch_one(NAMED(name_="added"))) == [(1,)]
