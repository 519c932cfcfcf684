"""A session that is deleted in the middle of its turns: they stop, and are billed."""

from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import delete, select

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import Budget, KeptUsage, Session, Turn
from app.services.turns.errors import TurnLost
from app.state import Providers, State
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import assert_nothing_is_left, open_server
from tests.support.waiting import until
from tests.turns.test_engine import Gate

pytestmark = pytest.mark.anyio


async def kept(database: Database) -> list[tuple[int, int, bool]]:
    async with database.reading() as db:
        rows = (await db.scalars(select(KeptUsage))).all()
    return [(row.turns, row.prompt_tokens, row.agent_id is not None) for row in rows]


async def reserved(database: Database) -> list[tuple[int, int]]:
    async with database.reading() as db:
        rows = await db.execute(select(Budget.live_turns, Budget.tokens))
        return [(live, tokens) for live, tokens in rows]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_running_turn_is_cancelled_and_billed(
    settings: Settings,
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    providers: Providers,
    session_id: str,
    where: str,
) -> None:
    if database.is_sqlite and where == "elsewhere":
        pytest.skip("a SQLite file has one server")
    gate = Gate()
    held = FakeChatModel()
    held.while_thinking = gate
    async with open_server(settings, database, {**providers, "chat_model": held}) as other:
        chat_model = providers["chat_model"]
        assert isinstance(chat_model, FakeChatModel)
        chat_model.while_thinking = gate
        engine = (state if where == "here" else other)["turns"]
        turn = await engine.start(ADMIN, UUID(session_id), "Hi, how are you?")
        await gate.arrived.wait()

        response = await client.delete(f"/sessions/{session_id}")

        assert response.status_code == 204
        with anyio.fail_after(60):
            await turn.settled.wait()  # though the model never answers
        assert turn.outcome
        assert isinstance(turn.outcome.error, TurnLost)

        async def is_billed() -> bool:
            return bool(await kept(database))

        await until(is_billed)
        await assert_nothing_is_left(database, state["turns"], other["turns"])
    ((turns, prompt_tokens, has_agent),) = await kept(database)
    assert (turns, has_agent) == (1, True)
    assert prompt_tokens > 0
    report = (await client.get("/usage")).json()
    assert report


async def test_waiting_turns_give_back_what_was_reserved_for_them(
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    key = (await client.post("/keys", json={
        "name": "limited", "scopes": ["turns:write", "turns:read", "sessions:read"],
        "tokens_per_day": 1_000_000,
    })).json()  # fmt: skip
    headers = {"Authorization": f"Bearer {key['key']}"}
    body = {"session_id": session_id, "content": "Hi"}
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(lambda: client.post("/messages/text", json=body, headers=headers))

        async def are_accepted() -> bool:
            async with database.reading() as db:
                return len((await db.scalars(select(Turn.id))).all()) == 3

        await until(are_accepted)
        await gate.arrived.wait()
        assert (await client.delete(f"/sessions/{session_id}")).status_code == 204

    await assert_nothing_is_left(database, state["turns"])

    async def is_released() -> bool:
        return all(live == 0 for live, _ in await reserved(database))

    await until(is_released)
    ((_, tokens),) = await reserved(database)
    ((_, prompt_tokens, _),) = await kept(database)
    assert tokens == prompt_tokens  # of the one that ran


async def test_checkpoints_of_other_sessions_go_on(
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    agent_id: str,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    deleted = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    other = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
    turn = await state["turns"].start(ADMIN, UUID(other), "Hi")
    await gate.arrived.wait()
    async with database.transaction() as db:  # as another server does, which cancels nothing here
        await db.execute(delete(Session).where(Session.id == UUID(session_id)))

    async def is_stored() -> bool:
        return not turn.log.unstored_events()

    await until(is_stored)
    with anyio.fail_after(60):
        await deleted.settled.wait()
    assert not turn.settled.is_set()
    gate.opened.set()


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres"], indirect=True)
async def test_token_of_a_session_that_is_deleted_meanwhile_is_404(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    seen: set[int] = set()

    async def make_token(session_id: str) -> None:
        response = await client.post(f"/sessions/{session_id}/tokens", json={})
        seen.add(response.status_code)

    for _ in range(20):
        session = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(make_token, session)
            group.start_soon(client.delete, f"/sessions/{session}")
            for _ in range(3):
                group.start_soon(make_token, session)

    assert seen == {201, 404}
