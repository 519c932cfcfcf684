"""Budgets of a day and turns at once: never exceeded, and given back when a turn is settled."""

from datetime import date, timedelta
from decimal import Decimal
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import select, update

from app.core.config import Settings
from app.core.database import Database
from app.core.errors import AppError
from app.core.limits import Limits
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID, Caller
from app.models import Budget, Message, Turn
from app.services.turns import LiveTurn
from app.services.usage.errors import BudgetExhausted, TooManyTurns
from app.state import Providers, State
from tests.conftest import StartServer
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, open_server, reply_to_text

pytestmark = pytest.mark.anyio

OUTPUT_TOKENS = 100
RESERVED = 100 + (9 + 8) + (2 + 8)
"""The limit of the answer, "Be brief." and "Hi", a token for each byte."""


@pytest.fixture
async def session_ids(client: httpx2.AsyncClient) -> list[UUID]:
    """Sessions with an agent that answers briefly."""
    agent = {"name": "A", "system_prompt": "Be brief.", "max_output_tokens": OUTPUT_TOKENS}
    agent_id = (await client.post("/agents", json=agent)).json()["id"]
    made = [await client.post("/sessions", json={"agent_id": agent_id}) for _ in range(12)]
    return [UUID(response.json()["id"]) for response in made]


async def start_in_all(
    states: list[State], session_ids: list[UUID], caller: Caller = ADMIN
) -> tuple[list[LiveTurn], list[AppError]]:
    """Say "Hi" in all sessions at once, in turn on each server."""
    started: list[LiveTurn] = []
    refused: list[AppError] = []

    async def start(state: State, session_id: UUID) -> None:
        try:
            started.append(await state["turns"].start(caller, session_id, "Hi"))
        except AppError as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for number, session_id in enumerate(session_ids):
            group.start_soon(start, states[number % len(states)], session_id)
    return started, refused


async def row_of(database: Database, bucket: str = "") -> Budget:
    async with database.reading() as db:
        return (await db.scalars(select(Budget).where(Budget.bucket == bucket))).one()


async def test_tokens_reserved_at_once_never_exceed_the_budget(
    second_server: StartServer,
    database: Database,
    chat_model: FakeChatModel,
    session_ids: list[UUID],
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with second_server(limit_tokens_per_day=5 * RESERVED + 1) as state:
        started, refused = await start_in_all([state], session_ids)
        reserved = (await row_of(database)).tokens
        gate.opened.set()
        for live in started:
            await live.settled.wait()
        again = await reply_to_text(state["turns"], ADMIN, session_ids[-1], "Hi")

    assert len(started) == 5
    assert {type(error) for error in refused} == {BudgetExhausted}
    assert reserved == 5 * RESERVED
    assert again.content == "Hello there!"
    assert (await row_of(database)).tokens == 6 * 10


async def test_refused_turn_leaves_nothing(
    second_server: StartServer, database: Database, session_ids: list[UUID]
) -> None:
    async with second_server(limit_tokens_per_day=RESERVED - 1) as state:
        started, refused = await start_in_all([state], session_ids[:2])

    assert (len(started), len(refused)) == (0, 2)
    async with database.reading() as db:
        for table in (Turn, Message, Budget):
            assert (await db.scalars(select(table))).all() == []


async def test_dollars_reserved_at_once_never_exceed_the_budget(
    second_server: StartServer,
    chat_model: FakeChatModel,
    session_ids: list[UUID],
    database: Database,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    # At the list price of the server's default model.
    each_nanos = 100 * 1000 + (RESERVED - 100) * 200
    budget = Decimal(3 * each_nanos) / 10**9
    async with second_server(limit_usd_per_day=budget) as state:
        started, refused = await start_in_all([state], session_ids)
        reserved = (await row_of(database)).nanos
        gate.opened.set()
        for live in started:
            await live.settled.wait()

    assert len(started) == 3
    assert reserved == 3 * each_nanos
    assert {error.quota.resource for error in refused if error.quota} == {"usd"}
    assert (await row_of(database)).nanos == 3 * 4040


async def test_turns_at_once_are_limited_and_places_come_back(
    second_server: StartServer,
    chat_model: FakeChatModel,
    session_ids: list[UUID],
    database: Database,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with second_server(limit_concurrent_turns=4) as state:
        started, refused = await start_in_all([state], session_ids)
        gate.opened.set()
        for live in started:
            await live.settled.wait()
        again, _ = await start_in_all([state], session_ids[:4])
        for live in again:
            await live.settled.wait()

    assert len(started) == len(again) == 4
    assert {type(error) for error in refused} == {TooManyTurns}
    assert (await row_of(database)).live_turns == 0


async def test_place_of_a_turn_that_went_with_its_session_comes_back(
    second_server: StartServer,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    session_ids: list[UUID],
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with second_server(limit_concurrent_turns=1) as state:
        lost = await state["turns"].start(ADMIN, session_ids[0], "Hi")
        await gate.arrived.wait()
        await client.delete(f"/sessions/{session_ids[0]}")
        gate.opened.set()
        await lost.settled.wait()

        reply = await reply_to_text(state["turns"], ADMIN, session_ids[1], "Hi")

    assert reply.content == "Hello there!"


async def test_two_servers_share_the_limits(
    settings: Settings,
    database: Database,
    providers: Providers,
    chat_model: FakeChatModel,
    session_ids: list[UUID],
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    limited = settings.model_copy(
        update={"limit_tokens_per_day": 7 * RESERVED, "limit_concurrent_turns": 9}
    )
    # Two processes on one SQLite file are not possible: there they are two of one pool.
    own = database if database.is_sqlite else Database.from_settings(settings)
    async with (
        open_server(limited, database, providers) as first,
        open_server(limited, own, providers) as second,
    ):
        started, refused = await start_in_all([first, second], session_ids)
        gate.opened.set()
        for live in started:
            await live.settled.wait()
    if own is not database:
        await own.dispose()

    assert len(started) == 7
    assert {type(error) for error in refused} == {BudgetExhausted}


async def test_key_has_limits_and_a_budget_of_its_own(
    state: State, chat_model: FakeChatModel, session_ids: list[UUID], database: Database
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    limits = Limits(tokens_per_day=2 * RESERVED)
    caller = Caller(DEFAULT_WORKSPACE_ID, key_id="key00001", limits=limits)

    of_key, refused = await start_in_all([state], session_ids[:4], caller)
    of_admin, _ = await start_in_all([state], session_ids[4:8])
    gate.opened.set()
    for live in of_key + of_admin:
        await live.settled.wait()

    assert (len(of_key), len(refused), len(of_admin)) == (2, 2, 4)
    assert (await row_of(database, "key00001")).tokens == 20
    assert (await row_of(database)).tokens == 40


async def test_zero_is_no_limit(
    second_server: StartServer, session_ids: list[UUID], database: Database
) -> None:
    names = ("concurrent_turns", "upload_minutes_per_day", "tokens_per_day", "usd_per_day")
    async with second_server(**{f"limit_{name}": 0 for name in names}) as state:
        await reply_to_text(state["turns"], ADMIN, session_ids[0], "Hi")

    async with database.reading() as db:
        assert (await db.scalars(select(Budget))).all() == []


async def test_new_day_begins_with_nothing_used(
    second_server: StartServer, session_ids: list[UUID], database: Database
) -> None:
    async with second_server(limit_tokens_per_day=RESERVED + 10) as state:
        for session_id in session_ids[:2]:
            await reply_to_text(state["turns"], ADMIN, session_id, "Hi")
        with pytest.raises(BudgetExhausted):
            await reply_to_text(state["turns"], ADMIN, session_ids[2], "Hi")
        await move_day(database, -1)
        await reply_to_text(state["turns"], ADMIN, session_ids[2], "Hi")

    row = await row_of(database)
    assert row.tokens == 10


async def test_clock_that_is_behind_does_not_begin_a_day_again(
    second_server: StartServer, session_ids: list[UUID], database: Database
) -> None:
    async with second_server(limit_tokens_per_day=RESERVED + 10) as state:
        for session_id in session_ids[:2]:
            await reply_to_text(state["turns"], ADMIN, session_id, "Hi")
        tomorrow = await move_day(database, 1)
        with pytest.raises(BudgetExhausted):
            await reply_to_text(state["turns"], ADMIN, session_ids[2], "Hi")

    assert (await row_of(database)).day == tomorrow


async def test_turn_of_yesterday_is_not_settled_on_today(
    state: State, chat_model: FakeChatModel, session_ids: list[UUID], database: Database
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    live = await state["turns"].start(ADMIN, session_ids[0], "Hi")
    await gate.arrived.wait()
    await move_day(database, 1)  # as the first turn of the next day does
    async with database.transaction() as db:
        await db.execute(update(Budget).values(tokens=50, nanos=0))
    gate.opened.set()
    await live.settled.wait()

    row = await row_of(database)
    assert (row.tokens, row.nanos, row.live_turns) == (50, 0, 0)


async def move_day(database: Database, days: int) -> date:
    day = (await row_of(database)).day + timedelta(days=days)
    async with database.transaction() as db:
        await db.execute(update(Budget).values(day=day))
    return day


async def test_minutes_of_recordings_are_limited(
    second_server: StartServer, settings: Settings, session_ids: list[UUID], speech: bytes
) -> None:
    caller = {"session_id": str(session_ids[0])}
    responses: list[httpx2.Response] = []
    async with (
        second_server(limit_upload_minutes_per_day=1) as state,
        client_of(settings, state) as client,
    ):
        for _ in range(40):
            response = await client.post(
                "/messages/voice", data=caller, files={"audio": ("x.wav", speech)}
            )
            responses.append(response)
            if response.status_code != 200:
                break
        usage = (await client.get("/usage")).json()

    *answered, refused = responses
    assert len(answered) >= 2
    assert {response.status_code for response in answered} == {200}
    assert refused.status_code == 429
    assert refused.json()["code"] == "uploads-exhausted"
    assert refused.headers["x-ratelimit-resource"] == "upload_seconds"
    assert refused.headers["x-ratelimit-limit"] == "60"
    assert usage[0]["speech_in_seconds"] <= 60


async def test_refusal_says_what_when_and_how_much(
    second_server: StartServer, settings: Settings, session_ids: list[UUID]
) -> None:
    body = {"session_id": str(session_ids[0]), "content": "Hi"}
    async with (
        second_server(limit_tokens_per_day=50) as state,
        client_of(settings, state) as client,
    ):
        response = await client.post("/messages/text", json=body)

    assert response.status_code == 429
    assert response.json()["code"] == "budget-exhausted"
    assert 1 <= int(response.headers["retry-after"]) <= 24 * 3600
    assert response.headers["x-ratelimit-limit"] == "50"
    assert response.headers["x-ratelimit-remaining"] == "50"
    assert response.headers["x-ratelimit-resource"] == "tokens"
    assert int(response.headers["x-ratelimit-reset"]) % 86400 == 0
    assert len(response.headers.get_list("x-ratelimit-limit")) == 1
