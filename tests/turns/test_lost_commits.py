"""COMMITs whose answer is lost: the message is taken on, refused truly, or said to be unknown."""

import re
from collections.abc import AsyncIterator, Callable
from random import Random
from uuid import UUID

import anyio
import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, update

from app.core.config import Settings
from app.core.database import (
    CommitOutcomeUnknown,
    Database,
    StorageUnavailable,
)
from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.security import ADMIN
from app.models import Message, Turn, TurnEventBatch, TurnStatus, new_id, utc_now
from app.services.turns import TurnEngine
from app.services.turns.storage.event_store import unpack
from app.state import Providers, State, build_state
from tests.conftest import Postgres, client_of
from tests.faults.commit_proxy import CommitProxy, Loss, commit_proxy
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import assert_nothing_is_left, open_server
from tests.support.waiting import until
from tests.test_postgres_runner import ADD
from tests.turns.test_engine import Gate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.postgres,
    pytest.mark.parametrize("settings", ["postgres"], indirect=True),
]

CONFIRM_SECONDS = 5
LOSSES = [pytest.param(loss, id=loss.value) for loss in Loss]


class Losing(CommitProxy):
    """Loses the next COMMIT of one kind of transaction; then closes its port, if so told."""

    next_loss: tuple[str, Loss] | None = None
    then: Callable[[], None] | None = None

    def choose(self, kind: str) -> Loss | None:
        self.commits[kind] += 1
        if self.next_loss is None or self.next_loss[0] != kind:
            return None
        loss = self.next_loss[1]
        self.next_loss = None
        self.lost[kind] += 1
        if self.then:
            self.then()
        return loss


@pytest.fixture
async def proxy(postgres: Postgres) -> AsyncIterator[Losing]:
    rng = Random(1)  # noqa: S311  # no secret
    async with commit_proxy(postgres.pooler.port, rng, Losing) as proxy:
        assert isinstance(proxy, Losing)
        yield proxy


@pytest.fixture
async def lossy(settings: Settings, proxy: Losing) -> AsyncIterator[Database]:
    """The test's database, behind the proxy."""
    assert settings.database_url
    url = re.sub(r":\d+/", f":{proxy.port}/", settings.database_url.get_secret_value())
    through = settings.model_copy(update={"database_url": SecretStr(url)})
    database = Database(through.parsed_database_url, confirm_seconds=CONFIRM_SECONDS)
    yield database
    await database.dispose()


@pytest.fixture
async def state(settings: Settings, lossy: Database, providers: Providers) -> AsyncIterator[State]:
    async with build_state(settings, lossy, providers) as state:
        yield state
        await assert_nothing_is_left(lossy, state["turns"])


async def count(database: Database, what: type[Turn | Message]) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(what)) or 0


async def send(client: httpx2.AsyncClient, session_id: str, key: str = "one") -> httpx2.Response:
    body = {"session_id": session_id, "content": "Hi"}
    return await client.post("/messages/text", json=body, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("loss", LOSSES)
async def test_message_whose_commit_had_no_answer_is_answered_or_surely_not_stored(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    proxy: Losing,
    loss: Loss,
) -> None:
    proxy.next_loss = ("acceptance", loss)

    response = await send(client, session_id)
    stored = await count(database, Turn)
    again = await send(client, session_id)

    assert proxy.lost["acceptance"] == 1
    if response.status_code == 200:
        assert stored == 1
        assert loss is not Loss.UNSENT
        assert again.json() == response.json()
    else:
        assert response.json()["code"] == "storage-unavailable"
        assert "Nothing was stored" in response.json()["detail"]
        assert stored == 0
        assert loss is not Loss.ANSWERED
    assert again.status_code == 200
    assert await count(database, Turn) == 1
    assert await count(database, Message) == 2


async def test_message_is_taken_on_when_its_client_left_before_the_commit_was_looked_up(
    state: State, database: Database, session_id: str, proxy: Losing
) -> None:
    async with anyio.create_task_group() as group:
        proxy.next_loss = ("acceptance", Loss.ANSWERED)
        proxy.then = group.cancel_scope.cancel
        group.start_soon(state["turns"].start, ADMIN, UUID(session_id), "Hi")

    await until_statuses(database, TurnStatus.COMPLETED)
    async with database.reading() as db:
        assert (await db.scalars(select(Turn.attempt))).all() == [1]


async def test_client_is_told_the_truth_while_nobody_can_know(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    proxy: Losing,
    postgres: Postgres,
) -> None:
    proxy.next_loss = ("acceptance", Loss.ANSWERED)
    proxy.then = proxy.cut_off

    response = await send(client, session_id)
    proxy.target_port = postgres.pooler.port

    problem = response.json()
    assert (response.status_code, problem["code"]) == (503, "storage-outcome-unknown")
    assert response.headers["Retry-After"]
    assert "same Idempotency-Key" in problem["detail"]
    turn = await client.get(f"/turns/{problem['turn_id']}")
    assert turn.status_code == 200
    with anyio.fail_after(60):  # the server finds that it owns a turn that it does not run
        again = await send(client, session_id)
    assert again.json()["turn_id"] == problem["turn_id"]
    assert await count(database, Message) == 2


@pytest.mark.parametrize("loss", LOSSES)
async def test_answer_whose_commit_had_no_answer_is_stored_once_and_told(
    client: httpx2.AsyncClient, database: Database, session_id: str, proxy: Losing, loss: Loss
) -> None:
    proxy.next_loss = ("settlement", loss)

    response = await send(client, session_id)

    assert proxy.lost["settlement"] == 1
    assert response.json()["content"] == "Hello there!"
    assert await statuses(database) == [TurnStatus.COMPLETED]
    numbers = await event_numbers(database)
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("loss", LOSSES)
async def test_queued_turn_runs_once_when_the_commit_that_promotes_it_had_no_answer(
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
    proxy: Losing,
    loss: Loss,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    first = await state["turns"].start(ADMIN, UUID(session_id), "One")
    second = await state["turns"].start(ADMIN, UUID(session_id), "Two")
    await gate.arrived.wait()
    proxy.next_loss = ("promotion", loss)
    gate.opened.set()

    with anyio.fail_after(60):
        replies = [await state["turns"].result(turn) for turn in (first, second)]

    assert proxy.lost["promotion"] == 1
    assert [reply.content for reply in replies] == ["Hello there!"] * 2
    assert len(chat_model.requests) == 2
    async with database.reading() as db:
        assert (await db.scalars(select(Turn.attempt))).all() == [1, 1]


@pytest.mark.parametrize("loss", LOSSES)
async def test_events_of_a_checkpoint_whose_commit_had_no_answer_are_stored_once(
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
    proxy: Losing,
    loss: Loss,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    proxy.next_loss = ("checkpoint", loss)
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    await until(lambda: not (turn.log.unstored_events() or turn.has_unknown_commit))
    stored = await event_numbers(database)
    gate.opened.set()
    await state["turns"].result(turn)

    assert proxy.lost["checkpoint"] == 1
    assert stored == [1, 2]
    numbers = await event_numbers(database)
    assert numbers == list(range(1, len(numbers) + 1))


async def test_answer_after_an_unknown_checkpoint_stores_no_event_twice(
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
    proxy: Losing,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    proxy.next_loss = ("checkpoint", Loss.ANSWERED)
    proxy.then = gate.opened.set  # the turn ends before the next checkpoint
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")

    assert (await state["turns"].result(turn)).content == "Hello there!"
    numbers = await event_numbers(database)
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("loss", LOSSES)
async def test_turn_on_another_server_is_cancelled_when_the_request_had_no_answer(
    state: State,
    settings: Settings,
    database: Database,
    providers: Providers,
    chat_model: FakeChatModel,
    session_id: str,
    proxy: Losing,
    loss: Loss,
) -> None:
    async with open_server(settings, database, providers) as other:
        gate = Gate()
        chat_model.while_thinking = gate
        turn = await other["turns"].start(ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()
        proxy.next_loss = ("cancel", loss)

        with anyio.fail_after(60):
            await state["turns"].cancel(ADMIN, turn.record.id)

        assert proxy.lost["cancel"] == 1
        assert await statuses(database) == [TurnStatus.CANCELLED]
        await assert_nothing_is_left(database, other["turns"])


@pytest.mark.parametrize("loss", LOSSES)
async def test_failed_turn_is_restarted_once_when_the_commit_had_no_answer(
    client: httpx2.AsyncClient,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
    proxy: Losing,
    loss: Loss,
) -> None:
    chat_model.answer = ""
    failed = await send(client, session_id)
    async with database.transaction() as db:  # with an error that may be tried again
        await db.execute(update(Turn).values(error_code="provider-unavailable"))
    chat_model.answer = "Now."
    proxy.next_loss = ("restart", loss)

    responses = [await send(client, session_id), await send(client, session_id)]

    assert failed.json()["code"] == "upstream-incomplete"
    assert proxy.lost["restart"] == 1
    assert responses[1].json()["content"] == "Now."
    assert len(chat_model.requests) == 2
    assert await count(database, Message) == 2
    if loss is Loss.ANSWERED:
        assert responses[0].json() == responses[1].json()


async def test_turns_that_were_taken_over_in_an_unknown_commit_are_run(
    state: State, database: Database, session_id: str, proxy: Losing
) -> None:
    assert not state["turns"].is_draining
    gate = Gate()
    held = FakeChatModel()
    held.while_thinking = gate
    engine = TurnEngine(database, held, drain_seconds=0)
    proxy.next_loss = ("recovery", Loss.ANSWERED)
    async with engine.running():  # at its end it releases the turn for another server
        turn = await engine.start(ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()

    await until_statuses(database, TurnStatus.COMPLETED)

    assert proxy.lost["recovery"] == 1
    async with database.reading() as db:
        rows = (await db.execute(select(Turn.id, Turn.attempt, Turn.recoveries))).all()
    assert rows == [(turn.record.id, 2, 1)]  # the lost COMMIT counts as no second recovery


async def test_script_is_not_run_again_after_its_commit_had_no_answer(
    lossy: Database, proxy: Losing
) -> None:
    runs: list[UUID] = []

    def add() -> TransactionScript[UUID]:
        runs.append(new_id())
        yield [ADD(id=runs[-1], name=str(runs[-1]), created_at=utc_now())]
        return runs[-1]

    for loss in Loss:
        proxy.next_loss = ("other", loss)
        with pytest.raises(CommitOutcomeUnknown) as raised:
            await lossy.run(add)
        assert raised.value.result == runs[-1]
    assert len(runs) == len(Loss)


async def test_connection_that_was_lost_before_commit_is_known_to_have_stored_nothing(
    lossy: Database, proxy: Losing
) -> None:
    def lose_the_connection() -> TransactionScript[None]:
        yield from fetch_one(PID())
        proxy.cut_off()
        yield from fetch_one(PID())

    with pytest.raises(StorageUnavailable) as raised:
        await lossy.run(lose_the_connection)

    assert raised.value.code == "storage-unavailable"


async def test_orm_transaction_says_that_its_commit_is_unknown(
    state: State, settings: Settings, proxy: Losing
) -> None:
    async with client_of(settings, state) as client:
        body = {"name": "Ada", "system_prompt": "Be brief."}
        key = {"Idempotency-Key": "agent"}
        await client.get("/agents")
        proxy.next_loss = ("agent", Loss.ANSWERED)
        response = await client.post("/agents", json=body, headers=key)
        again = await client.post("/agents", json=body, headers=key)
        agents = (await client.get("/agents")).json()

    assert proxy.lost["agent"] == 1
    assert response.json()["code"] == "storage-outcome-unknown"
    assert again.status_code == 201
    assert [agent["id"] for agent in agents] == [again.json()["id"]]


PID = PreparedStatement(lambda _: select(func.pg_backend_pid()))


async def statuses(database: Database) -> list[TurnStatus]:
    async with database.reading() as db:
        return list((await db.scalars(select(Turn.status).order_by(Turn.user_seq))).all())


async def until_statuses(database: Database, *expected: TurnStatus) -> None:
    """Wait until the session's turns have these statuses."""

    async def are_stored() -> bool:
        return await statuses(database) == list(expected)

    await until(are_stored)


async def event_numbers(database: Database) -> list[int]:
    """Return the numbers of all stored events."""
    async with database.reading() as db:
        batches = await db.scalars(
            select(TurnEventBatch.events).order_by(TurnEventBatch.last_number)
        )
    return [event.number for batch in batches for event in unpack(batch)]
