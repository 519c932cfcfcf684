"""Sessions: list, filter, search, rename, delete, fork, export, pages."""

from uuid import uuid4

import anyio
import httpx2
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.models import IdempotencyKey
from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio


async def say(client: httpx2.AsyncClient, session_id: str, *contents: str) -> None:
    for content in contents:
        response = await client.post(
            "/messages/text", json={"session_id": session_id, "content": content}
        )
        assert response.status_code == 200


async def test_session_is_renamed_and_its_metadata_replaced(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    metadata = {"ticket": 7, "tags": ["a", "Ünï 🎈"], "nested": {"deep": None}}

    changed = await client.patch(
        f"/sessions/{session_id}", json={"title": "Museum", "metadata": metadata}
    )

    assert changed.status_code == 200
    assert changed.json()["title"] == "Museum"
    assert (await client.get(f"/sessions/{session_id}")).json()["metadata"] == metadata
    cleared = await client.patch(f"/sessions/{session_id}", json={"title": None})
    assert cleared.json()["title"] is None
    assert cleared.json()["metadata"] == metadata


async def test_sessions_are_filtered_by_agent_and_user(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    other = (await client.post("/agents", json={"name": "Grace"})).json()["id"]
    mine = await client.post("/sessions", json={"agent_id": other, "user_id": "u1"})

    by_agent = await client.get("/sessions", params={"agent_id": agent_id})
    by_user = await client.get("/sessions", params={"user_id": "u1"})

    assert [session["id"] for session in by_agent.json()] == [session_id]
    assert [session["id"] for session in by_user.json()] == [mine.json()["id"]]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("museum", True),
        ("OPEN museum", True),
        ("sunday", True),
        ("dentist", False),
        ("open dentist", False),
        ("holiday", True),
        ("北京", True),
        ("100%", True),
        ("' OR 1=1 --", False),
    ],
)
async def test_sessions_are_searched_by_words_of_title_and_messages(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, words: str, found: bool
) -> None:
    await client.post("/sessions", json={"agent_id": agent_id, "title": "Empty"})
    await client.patch(f"/sessions/{session_id}", json={"title": "Holiday plans"})
    await say(client, session_id, "When does the museum open on Sunday? 我在北京。 I am 100% sure.")

    response = await client.get("/sessions", params={"q": words})

    assert [session["id"] for session in response.json()] == ([session_id] if found else [])


async def test_sessions_come_in_pages(client: httpx2.AsyncClient, agent_id: str) -> None:
    made = [
        (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"] for _ in range(5)
    ]

    seen: list[str] = []
    url: str | None = f"/sessions?limit=2&agent_id={agent_id}"
    while url:
        response = await client.get(url)
        seen += [session["id"] for session in response.json()]
        url = response.links.get("next", {}).get("url")

    assert seen == made[::-1]


async def test_messages_come_in_pages_oldest_first(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    await say(client, session_id, "1", "2", "3")

    seen: list[int] = []
    url: str | None = f"/sessions/{session_id}/messages?limit=4"
    while url:
        response = await client.get(url)
        seen += [message["seq"] for message in response.json()]
        url = response.links.get("next", {}).get("url")

    assert seen == [1, 2, 3, 4, 5, 6]


async def test_deleted_session_is_gone_with_all_that_hung_on_it(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    reply = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    deleted = await client.delete(f"/sessions/{session_id}")

    assert deleted.status_code == 204
    assert deleted.content == b""
    for path in (
        f"/sessions/{session_id}",
        f"/sessions/{session_id}/messages",
        f"/sessions/{session_id}/export",
        f"/turns/{reply.json()['turn_id']}",
    ):
        assert (await client.get(path)).status_code == 404
    assert (await client.delete(f"/sessions/{session_id}")).status_code == 404


async def test_fork_copies_up_to_a_message_and_goes_its_own_way(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    await say(client, session_id, "1", "2")

    fork = await client.post(f"/sessions/{session_id}/fork", json={"up_to_seq": 2})
    await say(client, fork.json()["id"], "other")

    assert fork.status_code == 201
    assert fork.json()["forked_from_session_id"] == session_id
    history = (await client.get(f"/sessions/{fork.json()['id']}")).json()["messages"]
    assert [message["content"] for message in history[::2]] == ["1", "other"]
    assert [message["seq"] for message in history] == [1, 2, 3, 4]
    assert chat_model.prompts[-1][1:] == [
        ("user", "1"),
        ("assistant", "Hello there!"),
        ("user", "other"),
    ]
    original = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert len(original) == 4


async def test_whole_session_is_forked_without_a_number(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    await say(client, session_id, "1")

    fork = await client.post(f"/sessions/{session_id}/fork", json={})

    assert fork.json()["last_seq"] == 2
    beyond = await client.post(f"/sessions/{session_id}/fork", json={"up_to_seq": 3})
    assert beyond.status_code == 404
    assert beyond.json()["code"] == "message-not-found"


async def test_fork_of_a_running_turn_is_refused(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    forks: list[httpx2.Response] = []

    async def fork_meanwhile() -> None:
        forks.append(await client.post(f"/sessions/{session_id}/fork", json={}))

    chat_model.while_thinking = fork_meanwhile
    with anyio.fail_after(60):
        await say(client, session_id, "Hi")

    assert forks[0].status_code == 409
    assert forks[0].json()["code"] == "session-busy"


async def test_export_holds_everything(client: httpx2.AsyncClient, session_id: str) -> None:
    await say(client, session_id, "Hi")

    response = await client.get(f"/sessions/{session_id}/export")

    export = response.json()
    assert f'filename="session-{session_id}.json"' in response.headers["content-disposition"]
    assert export["session"]["id"] == session_id
    assert export["agent"]["name"] == "Ada"
    assert [message["content"] for message in export["messages"]] == ["Hi", "Hello there!"]
    assert export["turns"][0]["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"agent_id": "no uuid"},
        {"agent_id": str(uuid4()), "metadata": "text"},
        {"agent_id": str(uuid4()), "metadata": {"big": "x" * 17_000}},
        {"agent_id": str(uuid4()), "metadata": {"nul": "\x00"}},
        {"agent_id": str(uuid4()), "user_id": ""},
        {"agent_id": str(uuid4()), "title": "x" * 201},
    ],
)
async def test_wrong_session_is_refused(client: httpx2.AsyncClient, body: object) -> None:
    response = await client.post("/sessions", json=body)

    assert response.status_code == 422


async def test_deleted_session_leaves_no_stored_answer(
    client: httpx2.AsyncClient, agent_id: str, database: Database
) -> None:
    key = {"Idempotency-Key": "once"}
    body = {"agent_id": agent_id, "title": "a title that must go"}
    made = (await client.post("/sessions", json=body, headers=key)).json()
    other = await client.post("/sessions", json=body, headers={"Idempotency-Key": "other"})
    said = {"session_id": made["id"], "content": "Hi"}
    await client.post("/messages/text", json=said, headers={"Idempotency-Key": "said"})

    await client.delete(f"/sessions/{made['id']}")

    async with database.reading() as db:
        left = (await db.scalars(select(IdempotencyKey.key))).all()
    assert other.is_success
    assert left == ["other"]
