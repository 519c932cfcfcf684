"""`GET /turns`: the newest first, by status, session, agent and time."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest

from app.services.ports import ProviderRateLimited
from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio

Turns = list[dict[str, Any]]


async def say(client: httpx2.AsyncClient, session_id: str) -> str:
    """Return the id of a turn, however it ends."""
    body = {"session_id": session_id, "content": "Hi"}
    return (await client.post("/messages/text", json=body)).json()["turn_id"]


async def listed(client: httpx2.AsyncClient, **filters: str) -> list[str]:
    answer = await client.get("/turns", params=filters)
    assert answer.status_code == 200, answer.text
    return [turn["id"] for turn in answer.json()]


async def test_turns_are_listed_newest_first_in_pages(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    turns = [await say(client, session_id) for _ in range(5)]

    first = await client.get("/turns", params={"limit": 2, "session_id": session_id})
    second = await client.get(first.links["next"]["url"])
    third = await client.get(second.links["next"]["url"])

    pages = [[turn["id"] for turn in page.json()] for page in (first, second, third)]
    assert pages == [turns[:2:-1], turns[2:0:-1], turns[:1]]
    assert "next" not in third.links


async def test_turns_are_filtered_by_status_session_and_agent(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, agent_id: str, session_id: str
) -> None:
    other_agent = (await client.post("/agents", json={"name": "Eve"})).json()["id"]
    other = (await client.post("/sessions", json={"agent_id": other_agent})).json()["id"]
    good, elsewhere = await say(client, session_id), await say(client, other)

    async def refuse() -> None:
        raise ProviderRateLimited("Not now.", retry_after_seconds=60)

    chat_model.while_thinking = refuse
    failed = await say(client, session_id)

    assert await listed(client) == [failed, elsewhere, good]
    assert await listed(client, status="failed") == [failed]
    assert await listed(client, status="completed") == [elsewhere, good]
    assert await listed(client, status="in_progress") == []
    assert await listed(client, session_id=other) == [elsewhere]
    assert await listed(client, agent_id=agent_id) == [failed, good]
    assert await listed(client, agent_id=agent_id, status="completed") == [good]
    (turn,) = (await client.get("/turns?status=failed")).json()
    assert turn["error"]["code"] == "provider-rate-limited"
    assert turn["timings"]["chat_attempt_1_ms"] >= 0


async def test_turns_are_filtered_by_the_time_of_their_creation(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    turns = [await say(client, session_id) for _ in range(2)]
    first, second = [
        datetime.fromisoformat((await client.get(f"/turns/{each}")).json()["created_at"])
        for each in turns
    ]

    assert await listed(client, **{"from": first.isoformat()}) == turns[::-1]
    assert await listed(client, **{"from": second.isoformat()}) == turns[1:]
    assert await listed(client, to=second.isoformat()) == turns[:1]
    assert await listed(client, to=first.isoformat()) == []
    abroad = second.astimezone(UTC) + timedelta(milliseconds=1)
    shifted = abroad.isoformat().replace("+00:00", "Z")
    assert await listed(client, to=shifted) == turns[::-1]


@pytest.mark.parametrize(
    "query",
    [
        "status=done", "session_id=1", "from=yesterday", "from=2026-11-01T00:00:00",
        "from=0001-01-01T00:00:00Z", "to=9999-12-31T23:59:59%2B00:00", "limit=0", "cursor=x",
    ],
)  # fmt: skip
async def test_filters_that_cannot_be_are_refused(client: httpx2.AsyncClient, query: str) -> None:
    answer = await client.get(f"/turns?{query}")

    assert answer.status_code == 422
