"""A turn leaves the registers of every process when it ends, and none is live without a task."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast
from uuid import UUID

import anyio
import anyio.lowlevel
import httpx2
import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import Turn, TurnStatus, utc_now
from app.services.turns import LiveTurn, TurnEngine, subscribe
from app.services.turns.errors import ServerDraining
from app.services.turns.execution.reconciliation import RegisterReconciler
from app.services.turns.storage import leases
from app.services.usage import StorageMeter
from app.state import Providers, State
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import assert_nothing_is_left, open_server
from tests.support.waiting import until
from tests.turns.test_engine import Gate

pytestmark = pytest.mark.anyio
on_postgres = pytest.mark.parametrize("settings", ["postgres"], indirect=True)


def register_of(engine: TurnEngine) -> dict[UUID, LiveTurn]:
    return engine._turns  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def queue_behind_another_server(
    first: TurnEngine, second: TurnEngine, gate: Gate, session_id: str
) -> LiveTurn:
    """Let `first` run a turn, and queue the session's next one at `second`."""
    await first.start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    queued = await second.start(ADMIN, UUID(session_id), "And?")
    assert queued.record.status is TurnStatus.QUEUED
    return queued


@pytest.mark.postgres
@on_postgres
@pytest.mark.parametrize("is_followed", [True, False])
async def test_queued_turn_that_another_server_runs_leaves_the_register_when_it_ends(
    settings: Settings,
    state: State,
    database: Database,
    providers: Providers,
    chat_model: FakeChatModel,
    session_id: str,
    is_followed: bool,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    first = state["turns"]
    async with open_server(settings, database, providers) as other:
        second = other["turns"]
        queued = await queue_behind_another_server(first, second, gate, session_id)
        gate.opened.set()
        if is_followed:
            with anyio.fail_after(60):
                kinds = [
                    event.type.value
                    async for batch in subscribe(second, database, queued, 0)
                    for event in batch
                ]
            assert kinds[-1] == "turn.completed"

        await assert_nothing_is_left(database, first, second)
    assert queued.outcome
    assert queued.outcome.content == "Hello there!"


@pytest.mark.postgres
@on_postgres
async def test_server_that_only_waits_for_another_drains_at_once(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    second = TurnEngine(database, chat_model)

    async with second.running():
        await queue_behind_another_server(state["turns"], second, gate, session_id)
        begun_at = anyio.current_time()
    gate.opened.set()

    assert anyio.current_time() - begun_at < 5
    await assert_nothing_is_left(database, state["turns"], second)


async def test_draining_server_still_runs_the_turns_queued_behind_its_own(
    database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    engine = TurnEngine(database, chat_model)

    async with engine.running():
        turns = [await engine.start(ADMIN, UUID(session_id), text) for text in ("1", "2", "3")]
        await gate.arrived.wait()
        engine.drain()
        gate.opened.set()

    assert [(await engine.result(turn)).content for turn in turns] == ["Hello there!"] * 3


async def test_turn_that_is_promoted_while_its_state_is_read_is_not_cancelled(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    before, promoted = Gate(), Gate()
    chat_model.while_thinking = before
    engine = state["turns"]
    await engine.start(ADMIN, UUID(session_id), "Hi")
    await before.arrived.wait()
    queued = await engine.start(ADMIN, UUID(session_id), "And?")

    class Overtaken:
        """A database whose answer arrives when the queued turn runs already."""

        @asynccontextmanager
        async def reading(self) -> AsyncGenerator[AsyncSession]:
            async with database.reading() as db:
                yield db
            chat_model.while_thinking = promoted
            before.opened.set()
            await promoted.arrived.wait()

    async def unexpected(*_: object) -> None:
        raise AssertionError

    reconciler = RegisterReconciler(
        cast("Database", Overtaken()),
        UUID(int=1),
        register_of(engine),
        unexpected,
        unexpected,
    )
    await reconciler.compare([], may_take_on=False)
    promoted.opened.set()

    assert (await engine.result(queued)).content == "Hello there!"
    await assert_nothing_is_left(database, engine)


async def test_turn_that_is_being_accepted_when_the_server_drains_is_run(
    database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    engine = TurnEngine(database, chat_model)
    accepted: list[LiveTurn] = []

    async def start() -> None:
        accepted.append(await engine.start(ADMIN, UUID(session_id), "Hi"))

    async with engine.running(), anyio.create_task_group() as group:
        group.start_soon(start)
        while not engine._tasks._accepting:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            await anyio.lowlevel.checkpoint()
        engine.drain()

    (turn,) = accepted
    assert (await engine.result(turn)).content == "Hello there!"


async def test_message_that_waited_while_the_server_began_to_drain_is_refused(
    database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()

    class SlowMeter:
        async def require_room(self, *_: object) -> None:
            await gate()

    engine = TurnEngine(database, chat_model, storage=cast("StorageMeter", SlowMeter()))

    async def start() -> None:
        with pytest.raises(ServerDraining):
            await engine.start(ADMIN, UUID(session_id), "Hi")

    async with anyio.create_task_group() as group:
        async with engine.running():
            group.start_soon(start)
            await gate.arrived.wait()
        gate.opened.set()

    await assert_nothing_is_left(database, engine)


async def test_live_row_of_a_server_that_does_not_run_it_is_taken_on(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    engine = state["turns"]
    turn = await engine.start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    chat_model.while_thinking = None
    register_of(engine).pop(turn.record.id)  # as if the answer of its COMMIT was never read

    async def is_run_again() -> bool:
        return await stored(database, turn) == (TurnStatus.COMPLETED, 2)

    await until(is_run_again)
    gate.opened.set()
    await assert_nothing_is_left(database, engine)


@pytest.mark.postgres
@on_postgres
async def test_only_leases_of_registered_turns_are_renewed(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    past = utc_now().replace(year=2020)
    async with database.transaction() as db:
        await db.execute(update(Turn).values(owner_id=UUID(int=7), lease_expires_at=past))

    await database.run(leases.renew_leases, UUID(int=7), [UUID(int=1)])
    async with database.reading() as db:
        before = await db.scalar(select(Turn.lease_expires_at))
    await database.run(leases.renew_leases, UUID(int=7), [turn.record.id, UUID(int=1)])
    async with database.reading() as db:
        after = await db.scalar(select(Turn.lease_expires_at))
    gate.opened.set()

    assert before == past
    assert after
    assert after > utc_now()


async def test_registered_turn_that_another_server_owns_is_stopped_and_leaves(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    engine = state["turns"]
    turn = await engine.start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    async with database.transaction() as db:  # another server took it over, and settled it
        await db.execute(
            update(Turn).values(
                status=TurnStatus.COMPLETED, attempt=2, owner_id=None,
                lease_expires_at=None, ended_at=utc_now(),
            )
        )  # fmt: skip

    await assert_nothing_is_left(database, engine)
    assert turn.scope.cancel_called


async def test_one_failing_checkpoint_does_not_stop_those_of_other_turns(
    client: httpx2.AsyncClient,
    state: State,
    chat_model: FakeChatModel,
    agent_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turns: list[LiveTurn] = []
    for _ in range(3):
        session = await client.post("/sessions", json={"agent_id": agent_id})
        turns.append(await state["turns"].start(ADMIN, UUID(session.json()["id"]), "Hi"))
    broken, *others = turns
    broken.log.unstored_events = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]  # a bug of ours

    await until(lambda: not any(turn.log.unstored_events() for turn in others))
    del broken.log.unstored_events
    gate.opened.set()
    with anyio.fail_after(60):
        for turn in turns:
            await turn.settled.wait()


async def stored(database: Database, turn: LiveTurn) -> tuple[TurnStatus, int]:
    async with database.reading() as db:
        row = (
            await db.execute(select(Turn.status, Turn.attempt).where(Turn.id == turn.record.id))
        ).one()
    return row.status, row.attempt
