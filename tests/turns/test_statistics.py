"""A young Postgres database: its plans are right from its first minute on."""

from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from sqlalchemy import text

from app.core.database import Database
from app.core.database.table_statistics import TableStatistics
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID
from app.state import State
from tests.support.turns import reply_to_text
from tests.support.waiting import until

pytestmark = [
    pytest.mark.new_database,
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.parametrize("settings", ["postgres"], indirect=True),
]

ANALYZED = text("SELECT relname FROM pg_class WHERE reltuples > 0 AND relkind = 'r'")
PLAN = (
    "EXPLAIN SELECT FROM agent_platform.%s "
    f"WHERE workspace_id = '{DEFAULT_WORKSPACE_ID}' AND id = '{uuid4()}'"
)


async def analyzed(database: Database) -> set[str]:
    async with database.connection() as connection:
        return set((await connection.scalars(ANALYZED)).all())


async def test_tables_are_analyzed_while_they_grow(
    state: State, database: Database, client: httpx2.AsyncClient, agent_id: str
) -> None:
    async def talk() -> None:
        session = await client.post("/sessions", json={"agent_id": agent_id})
        for _ in range(15):
            await reply_to_text(state["turns"], ADMIN, UUID(session.json()["id"]), "Hi " * 20)

    assert not {"turns", "messages"} & await analyzed(database)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(talk)

    async def both_are_analyzed() -> bool:
        return {"turns", "messages"} <= await analyzed(database)

    await until(both_are_analyzed)
    async with database.connection() as connection:
        for table in ("turns", "messages"):
            plan = (await connection.scalars(text(PLAN % table))).all()
            assert f"pk_{table}" in plan[0], plan


async def test_a_large_table_is_left_alone_until_it_has_doubled(database: Database) -> None:
    grow = text(
        "INSERT INTO agent_platform.workspaces (id, name, created_at) "
        "SELECT gen_random_uuid(), 'one of many', now() FROM generate_series(1, :count)"
    )
    counted = text("SELECT reltuples FROM pg_class WHERE relname = 'workspaces'")
    statistics = TableStatistics(database)
    counts: list[int] = []
    for turns, more in ((49, 1000), (50, 0), (99, 2500), (100, 0), (200, 0), (400, 100)):
        async with database.connection() as connection:
            await connection.execute(grow, {"count": more})
        statistics.accepted_turns = turns
        await statistics.refresh()
        async with database.connection() as connection:
            counts.append(round((await connection.scalars(counted)).one()))

    assert counts == [-1, 1001, 1001, 3501, 3501, 3501]


async def test_a_table_that_somebody_else_is_at_is_left_for_later(database: Database) -> None:
    statistics = TableStatistics(database)
    create = text("CREATE TABLE agent_platform.held AS SELECT generate_series(1, 9999)")
    lock = text("LOCK agent_platform.held IN SHARE UPDATE EXCLUSIVE MODE")
    async with database.connection() as connection:
        await connection.execute(create)
    async with database.connection() as connection:
        await connection.execute(lock)
        statistics.accepted_turns = 50
        await statistics.refresh()  # raises nothing
        assert "held" not in await analyzed(database)
    statistics.accepted_turns = 100
    await statistics.refresh()

    assert "held" in await analyzed(database)
