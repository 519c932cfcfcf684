"""Programs that share transactions on Postgres: each gets its own, in its own workspace."""

from uuid import UUID, uuid4

import anyio
import pytest
from sqlalchemy import Dialect, Integer, bindparam, func, insert, select, text
from sqlalchemy.sql import ClauseElement

from app.core.database import Database, StorageUnavailable
from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.database.workspace_scope import workspace_scope
from app.models import Workspace, new_id, utc_now
from app.services.turns.storage.tables import same_named_parameters
from tests.conftest import Postgres
from tests.support.waiting import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.parametrize("settings", ["postgres"], indirect=True),
]


def _transaction(_dialect: Dialect) -> ClauseElement:
    return select(func.txid_current(), func.current_setting("agent_platform.workspace_id"))


def _wait_for_lock(_dialect: Dialect) -> ClauseElement:
    return select(func.pg_advisory_xact_lock(bindparam("number", type_=Integer)))


def _divide(_dialect: Dialect) -> ClauseElement:
    return select(100 // bindparam("by", type_=Integer))


def _add(_dialect: Dialect) -> ClauseElement:
    return insert(Workspace).values(**same_named_parameters("id", "name", "created_at"))


CUT_OFF = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test_%'"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
TRANSACTION, WAIT_FOR_LOCK, DIVIDE, ADD = map(
    PreparedStatement, (_transaction, _wait_for_lock, _divide, _add)
)


def transaction() -> TransactionScript[tuple[int, str]]:
    ((number, workspace_id),) = yield from fetch_one(TRANSACTION())
    return number, workspace_id


async def test_programs_that_wait_together_share_transactions(database: Database) -> None:
    found: list[int] = []
    await database.run_batched(("first",), transaction)  # connects

    async def ask(lock: int) -> None:
        number, _ = await database.run_batched((str(lock),), transaction)
        found.append(number)

    async with anyio.create_task_group() as group:
        for lock in range(60):
            group.start_soon(ask, lock)

    assert len(found) == 60
    assert len(set(found)) <= 10


async def test_each_program_is_in_its_own_workspace(database: Database) -> None:
    workspaces = [uuid4() for _ in range(3)]
    wrong: list[tuple[UUID, str]] = []

    async def ask(number: int) -> None:
        mine = workspaces[number % 3]
        with workspace_scope(mine):
            for _ in range(10):
                _, seen = await database.run_batched((str(number),), transaction)
                if seen != str(mine):
                    wrong.append((mine, seen))

    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(ask, number)

    assert wrong == []


async def test_what_fails_fails_alone(database: Database) -> None:
    def divide(by: int) -> TransactionScript[int]:
        ((result,),) = yield from fetch_one(DIVIDE(by=by))
        return result

    results: dict[int, object] = {}

    async def ask(by: int) -> None:
        try:
            results[by] = await database.run_batched((str(by),), lambda: divide(by))
        except Exception as error:  # noqa: BLE001  # what it is, is asserted below
            results[by] = type(error).__name__

    async with anyio.create_task_group() as group:
        for by in range(20):
            group.start_soon(ask, by)

    assert results.pop(0) == "DivisionByZeroError"
    assert results == {by: 100 // by for by in range(1, 20)}


@pytest.mark.parametrize("others", [1, 30])
async def test_program_that_takes_long_holds_up_no_other(database: Database, others: int) -> None:
    ended: list[str] = []

    def wait() -> TransactionScript[None]:
        yield from fetch_one(WAIT_FOR_LOCK(number=1))

    async def slow() -> None:
        await database.run_batched(("a",), wait)
        ended.append("slow")

    async def quick(lock: int) -> None:
        await database.run_batched((str(lock),), transaction)
        ended.append("quick")

    async def slow_is_waiting() -> bool:
        async with database.connection() as other:
            return bool(await other.scalar(text(WAITING)))

    async with anyio.create_task_group() as group, database.connection() as holder:
        await holder.execute(select(func.pg_advisory_xact_lock(1)))
        group.start_soon(slow)
        await until(slow_is_waiting)
        async with anyio.create_task_group() as quick_ones:
            for lock in range(others):
                quick_ones.start_soon(quick, lock)

    assert ended == [*["quick"] * others, "slow"]


async def test_what_a_program_returned_from_is_committed(database: Database) -> None:
    missing: list[UUID] = []

    async def add_and_look(lock: int) -> None:
        for _ in range(10):
            its_id = new_id()

            def add(its_id: UUID = its_id) -> TransactionScript[None]:
                yield [ADD(id=its_id, name=str(its_id), created_at=utc_now())]

            await database.run_batched((str(lock),), add)
            async with database.reading() as db:
                if await db.get(Workspace, its_id) is None:
                    missing.append(its_id)

    async with anyio.create_task_group() as group:
        for lock in range(16):
            group.start_soon(add_and_look, lock)

    assert missing == []


async def test_lost_connections_are_replaced_under_load(
    database: Database, postgres: Postgres
) -> None:
    answered, refused = 0, 0
    is_over = anyio.Event()

    async def ask(lock: int) -> None:
        nonlocal answered, refused
        while not is_over.is_set():
            try:
                await database.run_batched((str(lock),), transaction)
                answered += 1
            except StorageUnavailable:
                refused += 1
                await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        for lock in range(16):
            group.start_soon(ask, lock)
        for cut_off in (True, True, True, False):
            before = answered
            await until(lambda before=before: answered >= before + 16)
            if cut_off:
                await anyio.to_thread.run_sync(postgres.server.execute, CUT_OFF)
        is_over.set()

    assert refused <= 3 * 16
