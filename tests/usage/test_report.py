"""`GET /usage`: exact sums of what was asked for, and nobody else's."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import insert, update

from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID, Caller
from app.models import KeptUsage, Turn, Workspace, new_id, utc_now
from app.services.usage import reports
from app.services.usage.errors import UsageTooDetailed
from app.services.usage.reports import Group, UsageFilters
from app.state import State
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, reply_to_text
from tests.usage.conftest import TURN_COST

pytestmark = pytest.mark.anyio


async def usage(client: httpx2.AsyncClient, **query: str) -> list[dict[str, Any]]:
    response = await client.get("/usage", params=query)
    assert response.status_code == 200, response.text
    return response.json()


async def say(client: httpx2.AsyncClient, session_id: str, content: str = "Hi") -> str:
    body = {"session_id": session_id, "content": content}
    return (await client.post("/messages/text", json=body)).json()["turn_id"]


async def test_sums_of_a_day_are_exact(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    for _ in range(3):
        await say(client, session_id)
    voiced = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )
    voice = (await client.get(f"/turns/{voiced.headers['x-turn-id']}")).json()["usage"]

    assert await usage(client) == [
        {
            "day": utc_now().date().isoformat(),
            "agent_id": None,
            "key_id": None,
            "user_id": None,
            "model": None,
            "turns": 4,
            "prompt_tokens": 28,
            "cached_tokens": 8,
            "completion_tokens": 12,
            "speech_in_seconds": voice["speech_in_seconds"],
            "speech_out_characters": 12,
            "cost_usd": (3 * 4040 + round(voice["cost_usd"] * 1e9)) / 1e9,
            "unpriced_turns": 0,
            "tool_id": None,
            "tool_name": None,
            "tool_calls": None,
            "tool_failures": None,
            "tool_ms": None,
        }
    ]


async def test_turns_are_told_apart_by_agent_key_user_and_model(
    client: httpx2.AsyncClient, state: State, agent_id: str
) -> None:
    for user_id, key_id in (("ada", None), ("ada", "key00001"), ("bob", "key00001")):
        body = {"agent_id": agent_id, "user_id": user_id}
        session_id = (await client.post("/sessions", json=body)).json()["id"]
        caller = Caller(DEFAULT_WORKSPACE_ID, key_id=key_id)
        await reply_to_text(state["turns"], caller, UUID(session_id), "Hi")

    rows = await usage(client, group_by="agent,key,user,model")
    by_key = await usage(client, group_by="key")
    total = await usage(client, group_by="")

    found = {(row["key_id"], row["user_id"]): row["turns"] for row in rows}
    assert found == {(None, "ada"): 1, ("key00001", "ada"): 1, ("key00001", "bob"): 1}
    assert {row["agent_id"] for row in rows} == {agent_id}
    assert {row["model"] for row in rows} == {"fake-1"}
    assert {row["key_id"]: row["turns"] for row in by_key} == {None: 1, "key00001": 2}
    assert [row["turns"] for row in total] == [3]
    assert total[0]["cost_usd"] == pytest.approx(3 * TURN_COST, abs=1e-12)


async def test_end_user_sees_own_usage_alone(
    client: httpx2.AsyncClient, state: State, database: Database, agent_id: str, session_id: str
) -> None:
    await say(client, session_id)
    opened = await client.post("/sessions", json={"agent_id": agent_id, "user_id": "ada"})
    session_id = opened.json()["id"]
    ada = Caller(DEFAULT_WORKSPACE_ID, user_id="ada")
    await reply_to_text(state["turns"], ada, UUID(session_id), "Hi")

    today = utc_now().date()
    async with database.reading() as db:
        rows = await reports.report(
            db, DEFAULT_WORKSPACE_ID, today, today, set[Group](), filters=UsageFilters("ada")
        )

    assert [row.turns for row in rows] == [1]


async def test_day_begins_and_ends_at_midnight_in_utc(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    moments = (
        datetime(2026, 2, 28, 23, 59, 59, 999999, UTC),
        datetime(2026, 3, 1, 0, 0, 0, 0, UTC),
        datetime(2026, 3, 1, 23, 59, 59, 999999, UTC),
        datetime(2026, 3, 2, 0, 0, 0, 0, UTC),
    )
    for moment in moments:
        turn_id = await say(client, session_id)
        async with database.transaction() as db:
            await db.execute(update(Turn).where(Turn.id == UUID(turn_id)).values(created_at=moment))

    days = await usage(client, **{"from": "2026-02-28", "to": "2026-03-02"})
    one_day = await usage(client, **{"from": "2026-03-01", "to": "2026-03-01"})

    assert [(row["day"], row["turns"]) for row in days] == [
        ("2026-02-28", 1),
        ("2026-03-01", 2),
        ("2026-03-02", 1),
    ]
    assert [(row["day"], row["turns"]) for row in one_day] == [("2026-03-01", 2)]


async def test_unpriced_turns_are_counted_and_not_summed_as_zero(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    turn_ids = [await say(client, session_id) for _ in range(2)]
    async with database.transaction() as db:
        await db.execute(
            update(Turn)
            .where(Turn.id == UUID(turn_ids[0]))
            .values(cost_nanos=None, model="mystery")
        )

    (total,) = await usage(client, group_by="")
    by_model = {row["model"]: row["cost_usd"] for row in await usage(client, group_by="model")}

    assert (total["cost_usd"], total["unpriced_turns"]) == (TURN_COST, 1)
    assert by_model == {"fake-1": TURN_COST, "mystery": None}


async def test_running_turns_are_not_in_the_report(
    client: httpx2.AsyncClient, state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    live = await state["turns"].start(Caller(DEFAULT_WORKSPACE_ID), UUID(session_id), "Hi")
    await gate.arrived.wait()

    before = await usage(client)
    gate.opened.set()
    await live.settled.wait()

    assert before == []
    assert [row["turns"] for row in await usage(client)] == [1]


async def test_bill_stays_whole_when_a_session_is_deleted(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    await say(client, session_id)
    await say(client, session_id)
    before = await usage(client, group_by="day,agent,key,user,model")

    assert (await client.delete(f"/sessions/{session_id}")).status_code == 204

    assert await usage(client, group_by="day,agent,key,user,model") == before


async def test_other_workspace_is_not_in_the_report(
    client: httpx2.AsyncClient, database: Database
) -> None:
    async with database.transaction() as db:
        other = Workspace(name="Other")
        db.add(other)
        await db.flush()
        await db.execute(
            insert(KeptUsage).values(
                workspace_id=other.id,
                id=new_id(),
                turns=1,
                unpriced_turns=0,
                prompt_tokens=1,
                cached_tokens=0,
                completion_tokens=1,
                speech_in_seconds=0,
                speech_out_characters=0,
                cost_nanos=1,
            )
        )

    assert await usage(client, group_by="") == []


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday",
        "from=1700000000",
        "from=2026-02-30",
        "from=2026-3-1",
        "to=2026-01-01T00:00:00",
        "from=2026-03-02&to=2026-03-01",
        "from=2024-01-01&to=2026-01-01",
        "from=0001-01-01",
        "to=9999-12-31",
        "to=0001-01-01",
        "group_by=cost",
        "group_by=day,",
        "group_by=day;agent",
        "group_by=" + "day," * 100 + "day",
        "from=%00",
        "from=%D9%A2%D9%A0%D9%A2%D9%A6-01-01",
    ],
)
async def test_wrong_question_is_refused(client: httpx2.AsyncClient, query: str) -> None:
    response = await client.get(f"/usage?{query}")

    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


async def test_report_with_too_many_rows_is_refused(database: Database) -> None:
    async with database.transaction() as db:
        for number in range(3):
            db.add(
                KeptUsage(
                    workspace_id=DEFAULT_WORKSPACE_ID,
                    user_id=f"user-{number}",
                    turns=1,
                    unpriced_turns=0,
                    prompt_tokens=1,
                    cached_tokens=0,
                    completion_tokens=1,
                    speech_in_seconds=0,
                    speech_out_characters=0,
                )
            )
    today = utc_now().date()

    async with database.reading() as db:
        with pytest.raises(UsageTooDetailed):
            await reports.report(db, DEFAULT_WORKSPACE_ID, today, today, {Group.USER}, rows_limit=2)
        (row,) = await reports.report(
            db, DEFAULT_WORKSPACE_ID, today, today, {Group.DAY}, rows_limit=2
        )
    assert (row.turns, row.cost_usd) == (3, None)
