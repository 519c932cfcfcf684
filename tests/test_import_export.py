"""Conversations move in with `POST /sessions`, and out with `GET /sessions/export`."""

import json
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID, Caller, CallerKind, Forbidden
from app.models import Role, Session
from app.services import crud
from app.services.crud import ImportedMessage
from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio

HISTORY = [
    {"role": "user", "content": "My name is Grüße 🎈.", "created_at": "2025-01-02T03:04:05+05:30"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "assistant", "content": "How can I help?"},
    {"role": "user", "content": "Later."},
]


async def create(client: httpx2.AsyncClient, agent_id: str, **fields: Any) -> httpx2.Response:
    return await client.post("/sessions", json={"agent_id": agent_id, **fields})


async def test_imported_conversation_is_read_prompted_and_continued(
    client: httpx2.AsyncClient, agent_id: str, chat_model: FakeChatModel
) -> None:
    created = (await create(client, agent_id, messages=HISTORY)).json()

    answer = await client.post(
        "/messages/text", json={"session_id": created["id"], "content": "Who am I?"}
    )
    again = await client.post(
        "/messages/text", json={"session_id": created["id"], "content": "And now?"}
    )

    session = (await client.get(f"/sessions/{created['id']}")).json()
    messages = session["messages"]
    assert (answer.status_code, again.status_code) == (200, 200)
    assert [message["seq"] for message in messages] == list(range(1, 9))
    assert [m["content"] for m in messages[:4]] == [each["content"] for each in HISTORY]
    assert [m["role"] for m in messages[:4]] == [each["role"] for each in HISTORY]
    assert {m["status"] for m in messages} == {"completed"}
    assert messages[0]["created_at"] == "2025-01-01T21:34:05Z"
    assert messages[1]["created_at"] == session["created_at"]
    first, second = chat_model.prompts[-2:]
    assert first[1:] == [
        (Role.USER, "My name is Grüße 🎈."),
        (Role.ASSISTANT, "Hello!\n\nHow can I help?"),
        (Role.USER, "Later.\n\nWho am I?"),
    ]
    assert [content for _, content in second[-2:]] == ["Hello there!", "And now?"]


async def test_import_can_be_searched_forked_and_repeated(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    body = {"agent_id": agent_id, "messages": HISTORY}
    key = {"Idempotency-Key": str(uuid4())}
    first = await client.post("/sessions", json=body, headers=key)
    again = await client.post("/sessions", json=body, headers=key)
    fork = await client.post(f"/sessions/{first.json()['id']}/fork", json={"up_to_seq": 3})

    found = (await client.get("/sessions", params={"q": "grüße"})).json()
    copied = (await client.get(f"/sessions/{fork.json()['id']}")).json()["messages"]

    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert {session["id"] for session in found} == {first.json()["id"], fork.json()["id"]}
    assert [m["content"] for m in copied] == [each["content"] for each in HISTORY[:3]]


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "system", "content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": "  "}, "content"),
        ({"role": "user", "content": "a\0b"}, "content"),
        ({"role": "user", "content": "x" * 200_001}, "content"),
        ({"role": "user", "content": "x", "created_at": "2999-01-01T00:00:00Z"}, "created_at"),
        ({"role": "user", "content": "x", "created_at": "2020-01-01T00:00:00"}, "created_at"),
        ({"role": "user", "content": "x", "created_at": "0001-01-01T00:00:00+14:00"}, "created_at"),
        ({"role": "user", "content": "x", "text": "y"}, "text"),
        ("hello", "messages"),
    ],
)
async def test_wrong_message_is_refused_and_nothing_is_stored(
    client: httpx2.AsyncClient, agent_id: str, message: object, named: str
) -> None:
    refused = await create(client, agent_id, messages=[HISTORY[0], message])

    assert refused.status_code == 422
    assert named in refused.json()["detail"]
    assert (await client.get("/sessions")).json() == []


async def test_a_thousand_messages_are_taken_and_more_refused(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    message = {"role": "user", "content": "Hi"}
    most = await create(client, agent_id, messages=[message] * 1000)
    more = await create(client, agent_id, messages=[message] * 1001)

    session = (await client.get(f"/sessions/{most.json()['id']}")).json()
    assert [m["seq"] for m in session["messages"]] == list(range(1, 1001))
    assert more.status_code == 422


async def test_end_user_puts_no_words_into_the_agents_mouth(
    database: Database, session_id: str
) -> None:
    user = Caller(DEFAULT_WORKSPACE_ID, CallerKind.USER, user_id="alice")
    async with database.transaction() as db:
        session = await db.get_one(Session, (DEFAULT_WORKSPACE_ID, UUID(session_id)))
        with pytest.raises(Forbidden, match="key"):
            await crud.import_messages(db, user, session, [ImportedMessage(Role.ASSISTANT, "Yes.")])
        assert session.last_seq == 0


async def test_everything_is_exported_in_pages_and_imported_again(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    other = (await client.post("/agents", json={"name": "Eve"})).json()["id"]
    ids = [
        (await create(client, agent, user_id=user, messages=HISTORY[: number % 5])).json()["id"]
        for number in range(7)
        for agent, user in [((agent_id, other)[number % 2], ("alice", None)[number % 2])]
    ]
    await client.post("/messages/text", json={"session_id": ids[0], "content": "Hi"})

    documents: list[dict[str, Any]] = []
    url: str | None = "/sessions/export?limit=3"
    pages = 0
    while url:
        page = await client.get(url)
        assert page.headers["content-type"] == "application/x-ndjson"
        documents += [json.loads(line) for line in page.text.splitlines()]
        url = page.links["next"]["url"] if "next" in page.links else None
        pages += 1

    assert pages == 3
    assert [document["session"]["id"] for document in documents] == ids[::-1]
    assert [len(document["messages"]) for document in documents] == [1, 0, 4, 3, 2, 1, 2]
    assert {document["agent"]["name"] for document in documents} == {"Ada", "Eve"}
    assert [turn["status"] for turn in documents[-1]["turns"]] == ["completed"]
    alone = (await client.get(f"/sessions/{ids[0]}/export")).json()
    assert alone == documents[-1]
    fields = {"role", "content", "created_at"}
    messages = [{name: m[name] for name in fields} for m in documents[2]["messages"]]
    back = (await create(client, agent_id, messages=messages)).json()["id"]
    restored = (await client.get(f"/sessions/{back}")).json()["messages"]
    assert [{name: m[name] for name in fields} for m in restored] == messages


@pytest.mark.parametrize(
    ("query", "expected"), [("user_id=alice", [2, 0]), ("user_id=nobody", []), ("limit=1", [2])]
)
async def test_export_is_filtered(
    client: httpx2.AsyncClient, agent_id: str, query: str, expected: list[int]
) -> None:
    users = ("alice", "bob", "alice")
    ids = [(await create(client, agent_id, user_id=user)).json()["id"] for user in users]

    page = await client.get(f"/sessions/export?{query}")

    exported = [json.loads(line)["session"]["id"] for line in page.text.splitlines()]
    assert exported == [ids[number] for number in expected]


async def test_export_is_in_the_audit_log(client: httpx2.AsyncClient, session_id: str) -> None:
    await client.get("/sessions/export")
    entries = (await client.get("/audit")).json()
    assert [(e["action"], e["target_id"]) for e in entries][:1] == [
        ("session.exported", session_id)
    ]
