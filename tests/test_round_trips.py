"""What a program asks at once goes to Postgres in as few statements as may be."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
import pytest
from sqlalchemy import (
    ColumnElement,
    Dialect,
    bindparam,
    delete,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.orm import aliased
from sqlalchemy.sql import ClauseElement

from app.core.database import Database
from app.core.database.statement_batching import RoundTripPlanner
from app.core.database.statements import PreparedStatement, Rows
from app.core.database.transactions import TransactionScript
from app.models import Session, Workspace, new_id, utc_now
from app.services.turns.storage.tables import same_named_parameters
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"


def _add(_dialect: Dialect) -> ClauseElement:
    return insert(Workspace).values(**same_named_parameters("id", "name", "created_at"))


def _rename(_dialect: Dialect) -> ClauseElement:
    its_id = Workspace.id == bindparam("id_")
    return update(Workspace).where(its_id).values(name=bindparam("name")).returning(Workspace.name)


def _forget_sessions(_dialect: Dialect) -> ClauseElement:
    return delete(Session).where(Session.workspace_id == bindparam("id_"))


def _names(_dialect: Dialect) -> ClauseElement:
    return select(Workspace.name).where(Workspace.id == bindparam("id_"))


def _is_as_seen() -> ColumnElement[bool]:
    seen = aliased(Workspace, name="seen")
    xmin: ColumnElement[Any] = literal_column("seen.xmin")
    its_row = select(xmin).select_from(seen).where(seen.id == bindparam("id_"))
    return literal_column("workspaces.xmin") == its_row.scalar_subquery()


def _others(_dialect: Dialect) -> ClauseElement:
    of_the_test = Workspace.name.startswith(bindparam("prefix_"))
    return (
        select(Workspace.name, Workspace.created_at)
        .where(of_the_test, Workspace.id != bindparam("id_"))
        .order_by(Workspace.name)
    )


ADD, RENAME, FORGET_SESSIONS, NAMES = map(
    PreparedStatement, (_add, _rename, _forget_sessions, _names)
)
LOCK, OTHERS = PreparedStatement(_rename, _is_as_seen), PreparedStatement(_others)


def plan(*statements: PreparedStatement) -> list[str]:
    trips = RoundTripPlanner(asyncpg_dialect()).plan([statement() for statement in statements])
    return [trip.sql for trip in trips]


def test_changes_of_different_tables_are_one_statement() -> None:
    (sql,) = plan(RENAME, FORGET_SESSIONS)

    assert sql.startswith("WITH step_0 AS (DELETE FROM agent_platform.sessions")
    assert sql.endswith("RETURNING agent_platform.workspaces.name")
    assert [f"${number}" in sql for number in (1, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize(
    "statements", [(ADD, RENAME), (RENAME, NAMES), (NAMES, NAMES), (NAMES, FORGET_SESSIONS)]
)
def test_what_may_depend_on_each_other_stays_apart(
    statements: tuple[PreparedStatement, ...],
) -> None:
    assert len(plan(*statements)) == 2


def test_a_lock_and_the_question_after_it_are_one_statement() -> None:
    (sql,) = plan(LOCK, OTHERS)

    assert sql.startswith("WITH lock (l0) AS (UPDATE agent_platform.workspaces")
    assert "selected (q0, q1) AS (SELECT" in sql
    assert sql.endswith(
        "SELECT 0, l0, NULL, NULL FROM lock UNION ALL SELECT 1, NULL, q0, q1 FROM selected"
    )


@pytest.mark.parametrize(
    "statements", [(LOCK, FORGET_SESSIONS), (LOCK, OTHERS, OTHERS), (OTHERS, LOCK)]
)
def test_only_one_question_goes_with_a_lock(statements: tuple[PreparedStatement, ...]) -> None:
    assert all("xmin" not in sql for sql in plan(*statements))


@pytest.mark.parametrize("count", [1, 20])
async def test_each_statement_gets_its_own_rows(database: Database, count: int) -> None:
    results: list[tuple[str, list[Rows]]] = []

    def work(name: str) -> TransactionScript[list[Rows]]:
        workspace_id = new_id()
        yield [ADD(id=workspace_id, name=f"old {name}", created_at=utc_now())]
        return (
            yield [
                NAMES(id_=workspace_id),
                RENAME(id_=workspace_id, name=name),
                FORGET_SESSIONS(id_=workspace_id),
                NAMES(id_=workspace_id),
            ]
        )

    async def run(number: int) -> None:
        name = f"w{number}"
        results.append((name, await database.run_batched((name,), lambda: work(name))))

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(run, number)

    assert len(results) == count
    for name, rows in results:
        assert rows == [[(f"old {name}",)], [(name,)], [], [(name,)]]


@pytest.mark.parametrize("count", [1, 20])
async def test_a_lock_and_a_question_get_their_own_rows(database: Database, count: int) -> None:
    results: dict[str, list[Rows]] = {}
    made = datetime(2026, 1, 2, 3, 4, 5, 678, UTC)

    def work(name: str) -> TransactionScript[list[Rows]]:
        locked_id, missing_id = new_id(), new_id()
        for number in reversed(range(3)):
            workspace_id = new_id() if number else locked_id
            yield [ADD(id=workspace_id, name=f"{name}-{number}", created_at=made)]
        found = yield [
            LOCK(id_=locked_id, name="new"),
            OTHERS(id_=locked_id, prefix_=f"{name}-"),
        ]
        none = yield [
            LOCK(id_=missing_id, name="new"),
            OTHERS(id_=missing_id, prefix_="nobody"),
        ]
        return [*found, *none]

    async def run(name: str) -> None:
        results[name] = await database.run_batched((name,), lambda: work(name))

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(run, f"{number}")

    assert len(results) == count
    for name, rows in results.items():
        assert rows == [[("new",)], [(f"{name}-1", made), (f"{name}-2", made)], [], []]


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_lock_that_is_waited_for_is_followed_by_an_answer_of_after_it(
    database: Database, count: int, is_deleted: bool
) -> None:
    ids = [new_id() for _ in range(count)]
    results: dict[int, list[Rows]] = {}

    def add(workspace_id: UUID, name: str) -> TransactionScript[None]:
        yield [ADD(id=workspace_id, name=name, created_at=utc_now())]

    def look(number: int) -> TransactionScript[list[Rows]]:
        its = {"id_": ids[number]}
        return (yield [LOCK(**its, name="mine"), OTHERS(**its, prefix_=f"{number}-")])

    async def run(number: int) -> None:
        results[number] = await database.run_batched((f"{number:03}",), lambda: look(number))

    for workspace_id in ids:
        await database.run(add, workspace_id, "old")
    async with anyio.create_task_group() as group, database.transaction() as db:
        theirs = update(Workspace).where(Workspace.id == ids[0]).values(name="theirs")
        await db.execute(theirs)
        for number in range(count):
            group.start_soon(run, number)
        if not database.is_sqlite:  # where they wait without a word

            async def somebody_waits_for_the_row() -> bool:
                async with database.connection() as other:
                    return bool(await other.scalar(text(WAITING)))

            await until(somebody_waits_for_the_row)
        db.add(Workspace(id=new_id(), name="0-late", created_at=utc_now()))
        if is_deleted:
            await db.execute(delete(Workspace).where(Workspace.id == ids[0]))

    locked, others = results.pop(0)
    assert locked == ([] if is_deleted else [("mine",)])
    assert [name for name, _ in others] == ["0-late"]
    assert len(results) == count - 1
    assert all(rows == [[("mine",)], []] for rows in results.values())
