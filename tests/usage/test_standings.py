"""`GET /usage/budgets` and the filters of `GET /usage`."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN, DEFAULT_WORKSPACE_ID, Caller, CallerKind
from app.models import Turn
from app.state import State
from tests.conftest import StartServer, client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import reply_to_text
from tests.turns.test_engine import Gate

pytestmark = pytest.mark.anyio


async def session_of(client: httpx2.AsyncClient, user_id: str | None) -> str:
    agent_id = (await client.post("/agents", json={"name": "A"})).json()["id"]
    body = {"agent_id": agent_id, "user_id": user_id}
    return (await client.post("/sessions", json=body)).json()["id"]


async def budgets(client: httpx2.AsyncClient, **params: str) -> dict[tuple[str, str], Any]:
    response = await client.get("/usage/budgets", params=params)
    assert response.status_code == 200, response.text
    return {(line["bucket"], line["resource"]): line for line in response.json()}


async def test_budget_shows_what_is_used_reserved_and_left(
    client: httpx2.AsyncClient, state: State, chat_model: FakeChatModel
) -> None:
    key = await client.post(
        "/keys", json={"name": "k", "scopes": ["turns:write"], "tokens_per_day": 9000}
    )
    key_id = key.json()["id"]
    session_id = await session_of(client, "alice")
    caller = Caller(DEFAULT_WORKSPACE_ID, CallerKind.KEY, key_id=key_id)
    await reply_to_text(state["turns"], caller, UUID(session_id), "Hi")
    gate = Gate()
    chat_model.while_thinking = gate
    live = await state["turns"].start(caller, UUID(session_id), "Hi")
    await gate.arrived.wait()

    during = await budgets(client)
    alone = await budgets(client, user_id="alice")
    gate.opened.set()
    await live.settled.wait()
    after = await budgets(client, key_id=key_id)

    tokens = during[key_id, "tokens"]
    assert (tokens["kind"], tokens["key_id"], tokens["limit"]) == ("key", key_id, 9000)
    assert tokens["used"] == 10
    assert tokens["reserved"] > 2000
    assert tokens["remaining"] == 9000 - 10 - tokens["reserved"]
    assert datetime.fromisoformat(tokens["reset_at"]) > datetime.now(UTC)
    assert during[key_id, "turns"]["used"] == 1
    user = during["user:alice", "tokens"]
    assert (user["kind"], user["user_id"], user["limit"]) == ("user", "alice", 500_000)
    assert user["used"] == 10
    assert during["", "usd"]["limit"] == 50
    assert {bucket for bucket, _ in alone} == {"user:alice"}
    assert {bucket for bucket, _ in after} == {key_id}
    assert after[key_id, "tokens"]["used"] == 20
    assert after[key_id, "tokens"]["reserved"] == after[key_id, "turns"]["used"] == 0


async def test_limit_that_is_none_is_null(second_server: StartServer, settings: Settings) -> None:
    async with second_server(limit_usd_per_day=0) as state, client_of(settings, state) as unlimited:
        lines = await budgets(unlimited)

    assert lines["", "usd"]["limit"] is None
    assert lines["", "usd"]["remaining"] is None


async def test_usage_is_filtered(client: httpx2.AsyncClient, state: State) -> None:
    sessions = {user: await session_of(client, user) for user in ("alice", "bob")}
    for user, session_id in sessions.items():
        for _ in range(1 + (user == "bob")):
            await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")
    agent_id = (await client.get(f"/sessions/{sessions['bob']}")).json()["agent_id"]

    async def turns(**params: str) -> int:
        rows = (await client.get("/usage", params={"group_by": "", **params})).json()
        return sum(row["turns"] for row in rows)

    assert await turns() == 3
    assert await turns(user_id="alice") == 1
    assert await turns(user_id="nobody") == 0
    assert await turns(session_id=sessions["bob"]) == 2
    assert await turns(session_id=sessions["bob"], user_id="alice") == 0
    assert await turns(agent_id=agent_id) == 2
    assert await turns(key_id="key00001") == 0
    await client.delete(f"/sessions/{sessions['bob']}")
    assert await turns(user_id="bob") == 2
    assert await turns(session_id=sessions["bob"]) == 0


@pytest.mark.parametrize("day", ["2026-11-22", "2026-11-23", "2026-11-29", "2027-01-01"])
async def test_weeks_begin_on_monday_and_months_on_the_first(
    client: httpx2.AsyncClient, database: Database, session_id: str, state: State, day: str
) -> None:
    await reply_to_text(state["turns"], ADMIN, UUID(session_id), "Hi")
    moment = datetime.fromisoformat(f"{day}T23:59:59+00:00")
    async with database.transaction() as db:
        await db.execute(update(Turn).values(created_at=moment))
    days = {"from": "2026-10-01", "to": "2027-02-01"}

    of_week = (await client.get("/usage", params={**days, "group_by": "week,model"})).json()
    of_month = (await client.get("/usage", params={**days, "group_by": "month"})).json()

    that_day = date.fromisoformat(day)
    assert of_week[0]["day"] == str(that_day - timedelta(days=that_day.weekday()))
    assert of_month[0]["day"] == str(that_day.replace(day=1))


@pytest.mark.parametrize(
    ("group_by", "words"),
    [("hour", "day"), ("days", "`day`"), ("day,week", "one of"), ("day,,key", "takes")],
)
async def test_wrong_group_is_explained(
    client: httpx2.AsyncClient, group_by: str, words: str
) -> None:
    response = await client.get("/usage", params={"group_by": group_by})

    assert response.status_code == 422
    assert words in response.json()["detail"]
