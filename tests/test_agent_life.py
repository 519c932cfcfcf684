"""Agents and sessions: changed with what was read, archived and back, moved; times in order."""

from datetime import datetime
from typing import Any

import httpx2
import pytest

from tests.support.fake_providers import FakeChatModel

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_agent_is_changed_with_what_get_gave(
    client: httpx2.AsyncClient, agent_id: str, method: str
) -> None:
    path = f"/agents/{agent_id}"
    given = (await client.get(path)).json()

    same = await client.request(method, path, json=given)
    renamed = await client.request(method, path, json=given | {"name": "Eve"})

    assert same.status_code == renamed.status_code == 200
    assert same.json() == given
    assert renamed.json()["name"] == "Eve"
    assert renamed.json()["version"] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"id": "01900000-0000-7000-8000-000000000009"},
        {"version": 7},
        {"created_at": "2020-01-01T00:00:00Z"},
        {"archived_at": "2020-01-01T00:00:00Z"},
        {"id": 5},
        {"nonsense": 1},
    ],
)
@pytest.mark.parametrize("resource", ["agents", "sessions"])
async def test_read_only_field_that_differs_is_refused(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    resource: str,
    change: dict[str, Any],
) -> None:
    path = f"/{resource}/{agent_id if resource == 'agents' else session_id}"
    given = {**(await client.get(path)).json(), **change}
    given.pop("messages", None)

    response = await client.patch(path, json=given)

    assert response.status_code == 422
    assert next(iter(change)) in response.json()["detail"]


async def test_session_is_changed_with_what_get_gave(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    body = {"agent_id": agent_id, "title": "a", "metadata": {"x": [1, {"y": None}]}}
    given = (await client.post("/sessions", json=body)).json()

    response = await client.patch(f"/sessions/{given['id']}", json=given | {"title": "b"})

    assert response.status_code == 200, response.text
    assert {**response.json(), "updated_at": 0} == {**given, "title": "b", "updated_at": 0}


async def test_key_is_changed_with_what_get_gave(client: httpx2.AsyncClient) -> None:
    body = {"name": "a", "scopes": ["agents:read"], "expires_at": "2031-01-01T00:00:00Z"}
    made = (await client.post("/keys", json=body)).json()
    given = (await client.get(f"/keys/{made['id']}")).json()

    changed = await client.patch(f"/keys/{made['id']}", json=given | {"name": "b"})
    refused = await client.patch(f"/keys/{made['id']}", json=given | {"created_by": "key:other"})

    assert changed.status_code == 200, changed.text
    assert changed.json() == given | {"name": "b"}
    assert refused.status_code == 422
    assert refused.json()["detail"] == "`created_by`: is read-only and cannot be changed."


async def test_archived_agent_comes_back(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    message = {"session_id": session_id, "content": "Hi"}
    await client.delete(f"/agents/{agent_id}")
    refused = await client.post("/messages/text", json=message)
    read = await client.get(f"/sessions/{session_id}")
    fork = await client.post(f"/sessions/{session_id}/fork", json={})

    back = [await client.post(f"/agents/{agent_id}/unarchive") for _ in range(2)]

    assert refused.json()["code"] == "agent-archived"
    assert (read.status_code, fork.status_code) == (200, 201)
    assert [response.status_code for response in back] == [200, 200]
    assert back[0].json()["archived_at"] is None
    assert (await client.post("/messages/text", json=message)).status_code == 200
    actions = [entry["action"] for entry in (await client.get("/audit")).json()]
    assert actions[0] == "agent.unarchived"


async def test_session_of_an_archived_agent_moves_to_another(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, chat_model: FakeChatModel
) -> None:
    message = {"session_id": session_id, "content": "Hi"}
    await client.post("/messages/text", json=message)
    await client.delete(f"/agents/{agent_id}")
    new = {"name": "New", "system_prompt": "You are new."}
    other_id = (await client.post("/agents", json=new)).json()["id"]

    back = await client.patch(f"/sessions/{session_id}", json={"agent_id": agent_id})
    moved = await client.patch(f"/sessions/{session_id}", json={"agent_id": other_id})
    to_archived = await client.patch(f"/sessions/{session_id}", json={"agent_id": agent_id})
    to_nobody = await client.patch(
        f"/sessions/{session_id}", json={"agent_id": "01900000-0000-7000-8000-000000000009"}
    )
    reply = await client.post("/messages/text", json=message)

    assert back.status_code == 200  # it is there already
    assert moved.json()["agent_id"] == other_id
    assert to_archived.json()["code"] == "agent-archived"
    assert to_nobody.json()["code"] == "agent-not-found"
    assert reply.status_code == 200
    assert chat_model.prompts[-1][0] == ("system", "You are new.")
    assert len(chat_model.prompts[-1]) == 4


async def test_times_are_in_order(
    client: httpx2.AsyncClient, agent_id: str, session_id: str
) -> None:
    reply = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
    turn = (await client.get(f"/turns/{reply.json()['turn_id']}")).json()
    session = (await client.get(f"/sessions/{session_id}")).json()
    agent = (await client.get(f"/agents/{agent_id}")).json()
    question, answer = session["messages"]

    def at(text: str) -> datetime:
        return datetime.fromisoformat(text)

    assert answer["created_at"] == turn["ended_at"] == turn["message"]["created_at"]
    assert at(reply.json()["created_at"]) == at(answer["created_at"])
    assert at(question["created_at"]) < at(answer["created_at"])
    for resource in (session, agent):
        assert at(resource["created_at"]) <= at(resource["updated_at"])
    assert at(answer["created_at"]) <= at(session["updated_at"])
    assert "speech_in_seconds" not in turn
    assert "speech_in_seconds" in turn["usage"]
