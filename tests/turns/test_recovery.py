"""Turns whose server is gone: the next one finishes them, and nobody else's."""

from datetime import date
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import delete, select, update
from typing_extensions import override

from app.core.database import Database
from app.core.security import ADMIN
from app.models import Message, Turn, TurnEventBatch, TurnStatus
from app.services.turns import TurnEngine, subscribe
from app.services.turns.errors import (
    InternalError,
    ServerDraining,
    TurnInterrupted,
)
from app.services.turns.storage import leases
from app.services.usage import AccountDirectory, BillableUsage
from app.services.usage.pricing import Cost, PriceTable
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel
from tests.support.sse import parse
from tests.support.turns import Gate, abandon, wait_until_settled, wait_until_stored

pytestmark = pytest.mark.anyio


async def test_turn_of_a_dead_server_is_run_again_by_the_next(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    queued = await state["turns"].start(ADMIN, UUID(session_id), "And?")
    await gate.arrived.wait()
    await abandon(database, turn.record.id)
    answering = FakeChatModel()
    answering.answer = "From the second server."

    async with second_server(chat_model=answering):
        await wait_until_settled(database)
        gate.opened.set()
        with anyio.fail_after(60):
            await turn.settled.wait()

    async with database.reading() as db:
        attempts = (await db.scalars(select(Turn.attempt).order_by(Turn.user_seq))).all()
        contents = (await db.scalars(select(Message.content).order_by(Message.seq))).all()
    assert attempts == [2, 1]
    assert contents == ["Hi", "From the second server.", "And?", "From the second server."]
    assert answering.prompts[0] == [("system", "Be brief."), ("user", "Hi")]
    assert (await state["turns"].result(queued)).content == "From the second server."


async def test_turn_that_was_run_again_once_ends_as_interrupted(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await abandon(database, turn.record.id)
    async with database.transaction() as db:
        await db.execute(update(Turn).values(recoveries=1))

    async with second_server(chat_model=FakeChatModel()):
        await wait_until_settled(database)
    gate.opened.set()

    async with database.reading() as db:
        assert (await db.scalars(select(Turn.error_code))).all() == ["turn-interrupted"]


async def test_server_that_slept_past_its_lease_runs_its_own_turn_again(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await abandon(database, turn.record.id)
    chat_model.while_thinking = None

    again = await database.run(leases.recover_expired, UUID(int=2), all_others=False)
    await state["turns"].recover(*again[0])
    await wait_until_settled(database)
    gate.opened.set()

    async with database.reading() as db:
        assert (await db.scalars(select(Turn.attempt))).all() == [2]
        assert (await db.scalars(select(Message.content))).all() == ["Hi", "Hello there!"]


async def test_shutdown_waits_for_live_turns_and_takes_no_new_ones(
    database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    engine = TurnEngine(database, chat_model)

    async with engine.running():
        turn = await engine.start(ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()
        engine.drain()
        with pytest.raises(ServerDraining):
            await engine.start(ADMIN, UUID(session_id), "Too late")
        gate.opened.set()

    assert (await engine.result(turn)).content == "Hello there!"


async def test_shutdown_leaves_what_takes_too_long_to_the_next_server(
    database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    engine = TurnEngine(database, chat_model, drain_seconds=0.1)

    async with engine.running():
        turn = await engine.start(ADMIN, UUID(session_id), "Hi")
        queued = await engine.start(ADMIN, UUID(session_id), "And?")
        await gate.arrived.wait()

    for left in (turn, queued):
        with pytest.raises(TurnInterrupted):
            await engine.result(left)
    async with database.reading() as db:
        rows = await db.execute(select(Turn.status, Turn.owner_id).order_by(Turn.user_seq))
        assert rows.all() == [(TurnStatus.IN_PROGRESS, None), (TurnStatus.QUEUED, None)]
    next_engine = TurnEngine(database, FakeChatModel())
    async with next_engine.running():
        await wait_until_settled(database)
    async with database.reading() as db:
        contents = await db.scalars(select(Message.content).order_by(Message.seq))
        assert contents.all() == ["Hi", "Hello there!", "And?", "Hello there!"]


async def test_shutdown_does_not_hand_on_what_somebody_cancelled(
    database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    is_stopping, may_stop = anyio.Event(), anyio.Event()

    async def stop_slowly() -> None:
        try:
            await gate()
        finally:
            is_stopping.set()
            with anyio.CancelScope(shield=True):
                await may_stop.wait()

    chat_model.while_thinking = stop_slowly
    engine = TurnEngine(database, chat_model, drain_seconds=0)

    async with engine.running(), anyio.create_task_group() as group:
        turn = await engine.start(ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()
        group.start_soon(engine.cancel, ADMIN, turn.record.id)
        await is_stopping.wait()
        engine.drain()
        await anyio.wait_all_tasks_blocked()  # the shutdown has nothing but this turn to wait for
        may_stop.set()

    async with database.reading() as db:
        assert (await db.scalars(select(Turn.status))).all() == [TurnStatus.CANCELLED]


class BrokenTariff(PriceTable):
    """Knows no price, and says so in the wrong way."""

    @override
    def cost(self, used: BillableUsage, day: date) -> Cost:
        raise KeyError("price")


async def test_turn_that_breaks_off_over_a_bug_leaves_nobody_waiting(
    second_server: StartServer,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = TurnEngine(database, chat_model, accounts=AccountDirectory(tariff=BrokenTariff()))

    async with engine.running():
        turn = await engine.start(ADMIN, UUID(session_id), "Hi")
        with anyio.fail_after(60):
            await turn.settled.wait()
        assert not engine.holds(turn)

    assert turn.outcome
    assert isinstance(turn.outcome.error, InternalError)
    assert "failed with an unexpected error" in caplog.text
    await abandon(database, turn.record.id)
    async with second_server():
        await wait_until_settled(database)


async def test_turn_with_stored_events_that_is_interrupted_again_ends_for_its_followers(
    second_server: StartServer,
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await wait_until_stored(turn)
    await abandon(database, turn.record.id)
    async with database.transaction() as db:
        await db.execute(update(Turn).values(recoveries=1))

    async with second_server(chat_model=FakeChatModel()):
        await wait_until_settled(database)
    gate.opened.set()
    await turn.settled.wait()

    stream = await client.get(f"/turns/{turn.record.id}/events")
    events = parse(stream.text.splitlines())
    assert [event.type for event in events] == ["turn.created", "turn.in_progress", "turn.failed"]
    missed = await client.get(f"/turns/{turn.record.id}/events?after={events[1].id}")
    assert [event.type for event in parse(missed.text.splitlines())] == ["turn.failed"]


async def test_turn_that_is_run_again_shows_its_first_events_too(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await wait_until_stored(turn)
    await abandon(database, turn.record.id)
    answering, second = FakeChatModel(), Gate()
    answering.while_thinking = second

    async with second_server(chat_model=answering) as again:
        await second.arrived.wait()
        found = await again["turns"].find(ADMIN, turn.record.id)
        followed = subscribe(again["turns"], database, found, 0)
        types = [event.type.value for event in await anext(followed)]
        second.opened.set()
        types += [event.type.value async for batch in followed for event in batch]
    gate.opened.set()

    assert types[:3] == ["turn.created", "turn.in_progress", "turn.in_progress"]
    assert types[-1] == "turn.completed"


async def test_turn_that_is_run_again_goes_on_above_what_was_only_shown(
    second_server: StartServer,
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await abandon(database, turn.record.id)  # before anything is stored of its events
    async with database.transaction() as db:
        await db.execute(delete(TurnEventBatch))

    async with second_server(chat_model=FakeChatModel()):
        await wait_until_settled(database)
    gate.opened.set()
    await turn.settled.wait()

    shown = parse((await client.get(f"/turns/{turn.record.id}/events")).text.splitlines())
    later = await client.get(f"/turns/{turn.record.id}/events?after=5")
    missed = parse(later.text.splitlines())
    assert [shown[0].type, shown[-1].type] == ["turn.created", "turn.completed"]
    assert missed == shown[1:]
    assert missed[0].type == "turn.in_progress"


async def test_follower_who_came_before_the_turn_was_taken_over_is_not_left_waiting(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    answering, second = FakeChatModel(), Gate()
    answering.while_thinking = second

    async with second_server(chat_model=answering) as again:
        early = await again["turns"].find(ADMIN, turn.record.id)
        state["turns"].drain()  # so that it takes nothing over itself
        await abandon(database, turn.record.id)
        with anyio.fail_after(60):
            await second.arrived.wait()
            followed = subscribe(again["turns"], database, early, 0)
            kinds = [event.type.value for event in await anext(followed)]
            second.opened.set()
            kinds += [event.type.value async for batch in followed for event in batch]
            assert (await again["turns"].result(early)).content == "Hello there!"
    gate.opened.set()

    assert kinds[-1] == "turn.completed"
