"""Whose budgets a request and a turn are charged to, and whose they are not."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.core.limits import Limits
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID, Caller, CallerKind
from app.models import Budget
from app.services.ports import ChatFinished, ChatRequest, FinishReason, TextDelta
from app.services.turns.errors import MessageTooLong
from app.services.usage.errors import BudgetExhausted, RateLimited, TooManyTurns, UploadsExhausted
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import reply_to_text
from tests.turns.test_engine import Gate

pytestmark = pytest.mark.anyio

KEY = Caller(DEFAULT_WORKSPACE_ID, CallerKind.KEY, key_id="key00001")
ALICE = Caller(DEFAULT_WORKSPACE_ID, CallerKind.USER, user_id="alice")


async def open_session(
    client: httpx2.AsyncClient, user_id: str | None = None, **agent: Any
) -> UUID:
    made = await client.post("/agents", json={"name": "A", "system_prompt": ""} | agent)
    body = {"agent_id": made.json()["id"], "user_id": user_id}
    return UUID((await client.post("/sessions", json=body)).json()["id"])


async def until_refused(
    state: State, callers: Iterable[Caller], session_ids: Sequence[UUID]
) -> BudgetExhausted:
    """Say "Hi" as each of `callers`, in turn in each session, until one is refused."""
    for number, caller in enumerate(callers):
        try:
            session_id = session_ids[number % len(session_ids)]
            await reply_to_text(state["turns"], caller, session_id, "Hi")
        except BudgetExhausted as refusal:
            return refusal
    raise AssertionError("nobody was refused")


async def tokens_used(database: Database) -> dict[str, int]:
    async with database.reading() as db:
        rows = await db.execute(select(Budget.bucket, Budget.tokens))
    return {bucket: tokens for bucket, tokens in rows if tokens}


@pytest.mark.parametrize(
    ("caller", "user_id", "buckets"),
    [
        (ADMIN, "alice", {""}),
        (KEY, None, {"key00001"}),
        (KEY, "alice", {"key00001", "user:alice"}),
        (replace(KEY, ancestors=(("parent01", Limits()),)), None, {"key00001", "parent01"}),
        (ALICE, "alice", {"users", "user:alice"}),
    ],
)
async def test_turn_is_charged_to_each_of_its_buckets(
    state: State,
    client: httpx2.AsyncClient,
    database: Database,
    caller: Caller,
    user_id: str | None,
    buckets: set[str],
) -> None:
    session_id = await open_session(client, user_id)

    await reply_to_text(state["turns"], caller, session_id, "Hi")

    assert await tokens_used(database) == dict.fromkeys(buckets, 10)


@pytest.mark.parametrize(("user_id", "bucket"), [("bob", "user:bob"), (None, "session:{}")])
async def test_token_of_the_admin_has_a_bucket_of_its_own(
    state: State,
    client: httpx2.AsyncClient,
    database: Database,
    user_id: str | None,
    bucket: str,
) -> None:
    session_id = await open_session(client, user_id)
    token = Caller(
        DEFAULT_WORKSPACE_ID,
        CallerKind.SESSION_TOKEN,
        session_id=session_id,
        session_user_id=user_id,
    )

    await reply_to_text(state["turns"], token, session_id, "Hi")

    assert set(await tokens_used(database)) == {"users", bucket.format(session_id)}


async def test_end_user_who_has_spent_their_budget_stops_nobody_else(
    second_server: StartServer, client: httpx2.AsyncClient
) -> None:
    sessions = {name: await open_session(client, name) for name in ("alice", "bob")}
    async with second_server(limit_user_tokens_per_day=2100, limit_usd_per_day=50) as state:
        engine = state["turns"]
        refused = await until_refused(state, [ALICE] * 30, [sessions["alice"]])
        bob = replace(ALICE, user_id="bob")
        await reply_to_text(engine, bob, sessions["bob"], "Hi")
        await reply_to_text(engine, ADMIN, sessions["alice"], "Hi")
        with pytest.raises(BudgetExhausted):
            await reply_to_text(engine, KEY, sessions["alice"], "Hi")

    assert "this end user" in refused.detail


async def test_all_end_users_together_stop_neither_keys_nor_the_admin(
    second_server: StartServer, client: httpx2.AsyncClient
) -> None:
    users = [replace(ALICE, user_id=f"user-{number}") for number in range(40)]
    sessions = [await open_session(client, user.user_id) for user in users]
    async with second_server(limit_tokens_per_day=2200) as state:
        await until_refused(state, users, sessions)
        await reply_to_text(state["turns"], KEY, sessions[-1], "Hi")
        await reply_to_text(state["turns"], ADMIN, sessions[-1], "Hi")


async def test_children_spend_their_makers_budget(
    second_server: StartServer, client: httpx2.AsyncClient
) -> None:
    session_id = await open_session(client)
    parent = ("parent01", Limits(tokens_per_day=2050))
    async with second_server() as state:
        children = [
            replace(KEY, key_id=f"child{number:03}", ancestors=(parent,)) for number in range(30)
        ]
        await until_refused(state, children, [session_id])
        maker = replace(KEY, key_id="parent01", limits=parent[1])
        with pytest.raises(BudgetExhausted):
            await reply_to_text(state["turns"], maker, session_id, "Hi")


async def test_workspace_limit_bounds_everybody_but_the_admin(
    second_server: StartServer, client: httpx2.AsyncClient, database: Database
) -> None:
    session_id = await open_session(client)
    async with second_server(limit_workspace_tokens_per_day=2050) as state:
        keys = [replace(KEY, key_id=f"key{number:05}") for number in range(30)]
        refused = await until_refused(state, keys, [session_id])
        await reply_to_text(state["turns"], ADMIN, session_id, "Hi")

    assert "this workspace" in refused.detail
    used = await tokens_used(database)
    assert used["workspace"] == sum(used.values()) - used["workspace"]


@pytest.mark.parametrize("tiny", [1e-6, 1e-12, 5e-324])
async def test_tiny_limit_is_not_none(
    state: State, client: httpx2.AsyncClient, tiny: float
) -> None:
    session_id = await open_session(client)
    poor = replace(KEY, limits=Limits(usd_per_day=tiny))
    quiet = replace(KEY, limits=Limits(upload_minutes_per_day=tiny))

    with pytest.raises(BudgetExhausted):
        await reply_to_text(state["turns"], poor, session_id, "Hi")
    assert state["accounts"].of(quiet).buckets[0].upload_ms_limit == 0
    assert UploadsExhausted.code == "uploads-exhausted"


async def test_turns_at_once_of_an_end_user_leave_room_for_others(
    second_server: StartServer, client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with second_server(limit_user_concurrent_turns=2) as state:
        engine = state["turns"]
        live = [
            await engine.start(ALICE, await open_session(client, "alice"), "Hi") for _ in range(2)
        ]
        with pytest.raises(TooManyTurns):
            await engine.start(ALICE, await open_session(client, "alice"), "Hi")
        bob = replace(ALICE, user_id="bob")
        live.append(await engine.start(bob, await open_session(client, "bob"), "Hi"))
        gate.opened.set()
        for turn in live:
            await turn.settled.wait()
        await reply_to_text(engine, ALICE, live[0].record.session_id, "Hi")


async def test_requests_of_a_token_leave_room_for_key_and_admin(second_server: StartServer) -> None:
    token = replace(KEY, kind=CallerKind.SESSION_TOKEN, session_id=UUID(int=7))
    keyless = replace(token, key_id=None, session_id=UUID(int=8))
    async with second_server(
        limit_user_requests_per_minute=5, limit_requests_per_minute=8
    ) as state:
        admit = state["request_limiter"].admit
        for caller in (token, keyless):
            quota = [await admit(caller) for _ in range(5)][-1]
            assert quota
            assert quota.remaining == "0"
            for _ in range(50):
                with pytest.raises(RateLimited):
                    await admit(caller)
        for caller in (KEY, ADMIN, replace(token, session_id=UUID(int=9))):
            await admit(caller)


async def test_requests_of_children_count_for_their_maker(second_server: StartServer) -> None:
    parent = ("parent01", Limits(requests_per_minute=6))
    async with second_server() as state:
        admit = state["request_limiter"].admit
        for number in range(6):
            await admit(replace(KEY, key_id=f"child{number:03}", ancestors=(parent,)))
        with pytest.raises(RateLimited):
            await admit(replace(KEY, key_id="child999", ancestors=(parent,)))
        with pytest.raises(RateLimited):
            await admit(replace(KEY, key_id="parent01", limits=parent[1]))


@pytest.mark.parametrize(
    ("agent", "content", "is_sent"),
    [
        ({"context_tokens": 512}, "x" * 1000, True),
        ({"context_tokens": 512}, "x" * 1200, False),
        ({"context_tokens": 512}, "x" * 199_000, False),
        ({"context_tokens": 512, "max_output_tokens": 1_000_000}, "x" * 360, True),
        ({"context_tokens": 512, "max_output_tokens": 1_000_000}, "x" * 400, False),
        ({"context_tokens": 600, "system_prompt": "y" * 1500}, "Hi", False),
        ({}, "私" * 7000, False),
    ],
)
async def test_question_above_the_window_is_refused_and_never_sent(
    state: State,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    agent: dict[str, Any],
    content: str,
    *,
    is_sent: bool,
) -> None:
    session_id = await open_session(client, **agent)

    if is_sent:
        await reply_to_text(state["turns"], KEY, session_id, content)
    else:
        with pytest.raises(MessageTooLong):
            await reply_to_text(state["turns"], KEY, session_id, content)

    assert len(chat_model.requests) == is_sent
    history = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert len(history) == 2 * is_sent


async def test_spoken_question_above_the_window_is_not_sent(
    client: httpx2.AsyncClient, transcriber: object, chat_model: FakeChatModel, speech: bytes
) -> None:
    session_id = await open_session(client, context_tokens=512)
    transcriber.text = "word " * 500  # pyright: ignore[reportAttributeAccessIssue]

    response = await client.post(
        "/messages/voice",
        data={"session_id": str(session_id)},
        files={"audio": ("x.wav", speech)},
    )

    assert response.status_code == 422
    assert response.json()["code"] == "message-too-long"
    assert chat_model.requests == []


@pytest.mark.parametrize(
    ("agent", "limit"),
    [
        ({}, 2000),
        ({"max_output_tokens": 77}, 77),
        ({"context_tokens": 512}, 128),
        ({"context_tokens": 100_000}, 4096),
    ],
)
async def test_limit_of_the_answer_that_is_reserved_is_sent(
    state: State,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    database: Database,
    agent: dict[str, Any],
    limit: int,
) -> None:
    session_id = await open_session(client, **agent)
    gate = Gate()
    chat_model.while_thinking = gate

    live = await state["turns"].start(KEY, session_id, "Hi")
    await gate.arrived.wait()
    reserved = await tokens_used(database)
    # An answer that takes all that it may, to a prompt that takes all that it can.
    chat_model.counts = (len("Hi") + 2 * 8, 0, limit)
    chat_model.finish_reason = FinishReason.LENGTH
    gate.opened.set()
    await live.settled.wait()

    assert chat_model.requests[0].max_output_tokens == limit
    assert reserved == await tokens_used(database)
    assert reserved == {"key00001": limit + len("Hi") + 2 * 8}


@pytest.mark.parametrize("piece", ["word ", "字", "x" * 5000])
async def test_answer_without_an_end_is_cut_where_the_reservation_ends(
    state: State,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    piece: str,
) -> None:
    session_id = await open_session(client, max_output_tokens=50)
    closed = anyio.Event()

    async def without_end(request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        assert request.max_output_tokens == 50
        try:
            while True:
                await anyio.lowlevel.checkpoint()
                yield TextDelta(piece)
        finally:
            closed.set()

    monkeypatch.setattr(chat_model, "stream", without_end)

    with anyio.fail_after(60):
        reply = await reply_to_text(state["turns"], KEY, session_id, "Hi")

    turn = (await client.get(f"/turns/{reply.turn_id}")).json()
    assert closed.is_set()
    assert reply.content == (piece * 400)[:400].rstrip() or reply.content == (piece * 400)[:400]
    assert (turn["status"], turn["finish_reason"]) == ("completed", "length")
    assert turn["message"]["status"] == "truncated"
    assert turn["usage"]["completion_tokens"] == 50
    assert turn["usage"]["estimated"] is True
    used = await tokens_used(database)
    assert used["key00001"] <= 50 + len("Hi") + 2 * 8


async def test_tokens_above_the_limit_are_not_billed_and_the_log_says_so(
    state: State,
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session_id = await open_session(client, max_output_tokens=50)
    chat_model.counts = (10, 0, 9_000)

    reply = await reply_to_text(state["turns"], KEY, session_id, "Hi")

    assert (reply.content, reply.status) == ("Hello there!", "completed")
    assert (reply.usage.completion_tokens, reply.usage.estimated) == (50, True)
    assert await tokens_used(database) == {"key00001": 60}
    assert "9000 of 50" in caplog.text


async def test_dollar_limit_holds_for_models_without_a_known_price(
    second_server: StartServer, client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    session_id = await open_session(client, model="nobody-knows", max_output_tokens=100)
    chat_model.counts = (1000, 0, 100)
    async with second_server(limit_usd_per_day=0.1, prices=None) as state:
        await until_refused(state, [KEY] * 14, [session_id])

    assert 10 <= len(chat_model.requests) <= 0.1 / (0.005 + 0.0025)


async def test_prices_that_are_not_known_are_told_at_start(
    second_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with second_server(prices=None):
        pass
    assert "gpt-realtime-2.1-mini" in caplog.text
    assert "PRICES" in caplog.text
    caplog.clear()
    none = {"limit_usd_per_day": 0, "limit_user_usd_per_day": 0}
    async with second_server(prices=None, **none):
        pass
    assert "PRICES" not in caplog.text
