"""What a program asks at once goes to Postgres in as few statements as may be."""

import anyio
import pytest
from sqlalchemy import Dialect, bindparam, delete, insert, select, update
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.sql import ClauseElement

from app.core.database import Database
from app.core.direct import Direct, Program, Rows
from app.core.round_trips import RoundTrips
from app.models import Session, Workspace, new_id, utc_now
from app.services.turns.statements import named

pytestmark = pytest.mark.anyio


def _add(_dialect: Dialect) -> ClauseElement:
    return insert(Workspace).values(**named("id", "name", "created_at"))


def _rename(_dialect: Dialect) -> ClauseElement:
    its_id = Workspace.id == bindparam("id_")
    return update(Workspace).where(its_id).values(name=bindparam("name")).returning(Workspace.name)


def _forget_sessions(_dialect: Dialect) -> ClauseElement:
    return delete(Session).where(Session.workspace_id == bindparam("id_"))


def _names(_dialect: Dialect) -> ClauseElement:
    return select(Workspace.name).where(Workspace.id == bindparam("id_"))


ADD, RENAME, FORGET_SESSIONS, NAMES = map(Direct, (_add, _rename, _forget_sessions, _names))


def plan(*statements: Direct) -> list[str]:
    trips = RoundTrips(asyncpg_dialect()).plan([statement() for statement in statements])
    return [trip.sql for trip in trips]


def test_changes_of_different_tables_are_one_statement() -> None:
    (sql,) = plan(RENAME, FORGET_SESSIONS)

    assert sql.startswith("WITH step_0 AS (DELETE FROM agent_platform.sessions")
    assert sql.endswith("RETURNING agent_platform.workspaces.name")
    assert [f"${number}" in sql for number in (1, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize(
    "statements", [(ADD, RENAME), (RENAME, NAMES), (NAMES, NAMES), (NAMES, FORGET_SESSIONS)]
)
def test_what_may_depend_on_each_other_stays_apart(statements: tuple[Direct, ...]) -> None:
    assert len(plan(*statements)) == 2


@pytest.mark.parametrize("count", [1, 20])
async def test_each_statement_gets_its_own_rows(database: Database, count: int) -> None:
    results: list[tuple[str, list[Rows]]] = []

    def work(name: str) -> Program[list[Rows]]:
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
        results.append((name, await database.run_with((name,), lambda: work(name))))

    async with anyio.create_task_group() as group:
        for number in range(count):
            group.start_soon(run, number)

    assert len(results) == count
    for name, rows in results:
        assert rows == [[(f"old {name}",)], [(name,)], [], [(name,)]]
