"""Turns that wait for actions cost rows, and no memory, task or lease of the process."""

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from sqlalchemy import func, insert, or_, select

from app.core.database import Database
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID
from app.models import Session, Turn, TurnStatus, new_id
from app.state import State
from tests.support.reports import FIGURES
from tests.support.scripted_tools import agent_tools
from tests.support.tool_turns import CLIENT_TOOL, ToolTurns

pytestmark = pytest.mark.anyio

TURNS = int(os.environ.get("WAITING_TURNS", "60"))
"""10,000 in full."""
_AT_ONCE = 20
_BYTES_OF_A_TURN = 1024
"""What the test's own fixtures may keep of each."""


async def sessions_of(database: Database, agent_id: str, count: int) -> list[UUID]:
    ids = [new_id() for _ in range(count)]
    async with database.transaction() as db:
        rows = [
            {"id": each, "workspace_id": DEFAULT_WORKSPACE_ID, "agent_id": UUID(agent_id)}
            for each in ids
        ]
        await db.execute(insert(Session), rows)
    return ids


async def wait_in_each(state: State, tool_turns: ToolTurns, session_ids: list[UUID]) -> None:
    """Begin a turn in each session, and return once all of them wait."""
    engine = state["turns"]
    limiter = anyio.CapacityLimiter(_AT_ONCE)

    async def begin(session_id: UUID) -> None:
        async with limiter:
            live = await engine.start(ADMIN, session_id, "Go")
            await engine.wait(live)
            assert live.waits_for_action

    for start in range(0, len(session_ids), 200):
        some = session_ids[start : start + 200]
        tool_turns.chat_model.script = [(("act", "{}"),) for _ in some]
        async with anyio.create_task_group() as group:
            for session_id in some:
                group.start_soon(begin, session_id)
        tool_turns.chat_model.requests.clear()


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def silence() -> Iterator[None]:
    """Nothing is logged: pytest keeps it until the test ends."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(240 + TURNS)
async def test_waiting_turns_cost_no_memory_no_task_and_no_lease(
    tool_turns: ToolTurns,
    agent_id: str,
    state: State,
    database: Database,
    record_property: Callable[[str, object], None],
    silence: None,
) -> None:
    del silence
    engine = state["turns"]
    await tool_turns.give(agent_tools(CLIENT_TOOL))
    await wait_in_each(state, tool_turns, await sessions_of(database, agent_id, TURNS // 5))
    tasks, memory = len(asyncio.all_tasks()), resident_bytes()

    await wait_in_each(state, tool_turns, await sessions_of(database, agent_id, TURNS))

    grown = resident_bytes() - memory
    more_tasks = len(asyncio.all_tasks()) - tasks
    sizes = engine.register_sizes()
    async with database.reading() as db:
        count = func.count()
        waiting = Turn.status == TurnStatus.REQUIRES_ACTION
        waits = await db.scalar(select(count).select_from(Turn).where(waiting))
        held = or_(Turn.owner_id.is_not(None), Turn.lease_expires_at.is_not(None))
        leased = await db.scalar(select(count).select_from(Turn).where(waiting, held))
    kind = "SQLite" if database.is_sqlite else "Postgres"
    record_property(
        FIGURES,
        f"{TURNS} turns more that wait on {kind}: {grown / 1e6:.1f} MB of resident memory, "
        f"{more_tasks} tasks, registers {sizes}, {leased} leases",
    )
    assert waits == TURNS // 5 + TURNS
    assert (sizes["turns"], sizes["watched_turns"], sizes["turn_tasks"]) == (0, 0, 0)
    assert more_tasks <= 0
    assert leased == 0
    if TURNS >= 10_000:
        assert grown < TURNS * _BYTES_OF_A_TURN
