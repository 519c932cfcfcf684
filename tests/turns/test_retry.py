"""Turns again: in place, by an earlier version, and what was said as it was recorded."""

import anyio
import httpx2
import pytest

from app.services.ports import ProviderRejected
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate

pytestmark = pytest.mark.anyio


async def send(client: httpx2.AsyncClient, session_id: str, content: str) -> httpx2.Response:
    body = {"session_id": session_id, "content": content}
    return await client.post("/messages/text", json=body)


async def fail_a_turn(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> str:
    async def refuse() -> None:
        raise ProviderRejected("Not this one.")

    chat_model.while_thinking = refuse
    failed = await send(client, session_id, "Hi")
    chat_model.while_thinking = None
    assert failed.status_code == 502, failed.text
    return failed.json()["turn_id"]


async def finished(client: httpx2.AsyncClient, turn_id: str) -> dict[str, object]:
    with anyio.fail_after(60):
        return (await client.get(f"/turns/{turn_id}?wait_seconds=60")).json()


async def test_failed_turn_is_run_again_as_the_same_message(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    turn_id = await fail_a_turn(client, session_id, chat_model)

    response = await client.post(f"/turns/{turn_id}/retry")

    assert response.status_code == 200, response.text
    turn = await finished(client, turn_id)
    assert (turn["status"], turn["attempt"], turn["error"]) == ("completed", 2, None)
    history = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert [message["status"] for message in history] == ["completed", "completed"]
    events = await client.get(f"/turns/{turn_id}/events")
    assert "turn.completed" in events.text
    again = await client.post(f"/turns/{turn_id}/retry")
    assert (again.status_code, again.json()["code"]) == (409, "turn-not-retryable")


async def test_turn_waits_for_the_one_that_runs_and_is_run_once(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    turn_id = await fail_a_turn(client, session_id, chat_model)
    gate = Gate()
    chat_model.while_thinking = gate
    before = len(chat_model.requests)

    async with anyio.create_task_group() as group:
        group.start_soon(send, client, session_id, "And this?")
        await gate.arrived.wait()
        first = await client.post(f"/turns/{turn_id}/retry")
        second = await client.post(f"/turns/{turn_id}/retry")
        assert [first.json()["status"], second.json()["status"]] == ["queued", "queued"]
        gate.opened.set()

    assert (await finished(client, turn_id))["status"] == "completed"
    assert len(chat_model.requests) == before + 2


async def test_recording_is_given_back_as_it_was_sent(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    sent = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )

    recording = await client.get(f"/turns/{sent.headers['x-turn-id']}/recording")

    assert recording.content == speech
    assert recording.headers["content-type"] == "audio/wav"


async def test_earlier_version_of_the_agent_answers_where_it_is_asked_for(
    client: httpx2.AsyncClient, session_id: str, agent_id: str, chat_model: FakeChatModel
) -> None:
    await client.put(f"/agents/{agent_id}", json={"system_prompt": "Be the second."})
    await client.put(f"/agents/{agent_id}", json={"system_prompt": "Be the third."})
    told: list[str] = []
    for version in (2, None, 2):
        body = {"session_id": session_id, "content": "Hi", "agent_version": version}
        sent = await client.post("/messages/text", json=body)
        assert sent.status_code == 200, sent.text
        told.append(chat_model.requests[-1].messages[0].content)
        turn = (await client.get(f"/turns/{sent.json()['turn_id']}")).json()
        assert turn["agent_version"] == (version or 3)
    missing = {"session_id": session_id, "content": "Hi", "agent_version": 9}
    refused = await client.post("/messages/text", json=missing)

    assert told == ["Be the second.", "Be the third.", "Be the second."]
    assert (refused.status_code, refused.json()["code"]) == (404, "version-not-found")
    token = (await client.post(f"/sessions/{session_id}/tokens", json={})).json()["token"]
    guest = await client.post(
        "/messages/text", json=body, headers={"Authorization": f"Bearer {token}"}
    )
    assert (guest.status_code, guest.json()["code"]) == (403, "forbidden")
