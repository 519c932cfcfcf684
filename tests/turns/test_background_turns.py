"""Turns in the background: `Prefer: respond-async`, and `wait_seconds` to wait for their end."""

import time
from uuid import uuid4

import anyio
import httpx2
import pytest

from app.core.config import Settings
from tests.conftest import StartServer, client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate

pytestmark = pytest.mark.anyio
ASYNC = {"Prefer": "respond-async"}


@pytest.mark.parametrize(
    "prefer",
    [
        "respond-async",
        "Respond-Async",
        "wait=10, respond-async",
        "respond-async; x=1, b=2",
    ],
)
async def test_turn_is_answered_at_once_and_read_later(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, session_id: str, prefer: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    body = {"session_id": session_id, "content": "Hi"}

    accepted = await client.post("/messages/text", json=body, headers={"Prefer": prefer})

    turn = accepted.json()
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    assert accepted.headers["location"] == f"/turns/{turn['id']}"
    assert turn["status"] in {"in_progress", "queued"}
    assert (turn["session_id"], turn["message"]["content"]) == (session_id, "")
    gate.opened.set()
    ended = (await client.get(accepted.headers["location"], params={"wait_seconds": 30})).json()
    assert ended["status"] == "completed"
    assert ended["message"]["content"] == "Hello there!"


@pytest.mark.parametrize("prefer", ["", "wait=10", "not-respond-async", "respond-asynchronously"])
async def test_other_preferences_wait_for_the_answer(
    client: httpx2.AsyncClient, session_id: str, prefer: str
) -> None:
    body = {"session_id": session_id, "content": "Hi"}
    answer = await client.post("/messages/text", json=body, headers={"Prefer": prefer})
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers


async def test_repeated_request_is_the_same_turn(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    body, key = {"session_id": session_id, "content": "Hi"}, {"Idempotency-Key": str(uuid4())}
    first = await client.post("/messages/text", json=body, headers=ASYNC | key)
    await client.get(first.headers["location"], params={"wait_seconds": 30})

    again = await client.post("/messages/text", json=body, headers=ASYNC | key)
    answer = await client.post("/messages/text", json=body, headers=key)

    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == first.json()["id"] == answer.json()["turn_id"]
    assert again.json()["message"]["content"] == answer.json()["content"] == "Hello there!"


async def test_refused_message_is_a_problem_as_without_it(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    bad = await client.post("/messages/text", json={"session_id": session_id}, headers=ASYNC)
    unknown = {"session_id": str(uuid4()), "content": "Hi"}
    gone = await client.post("/messages/text", json=unknown, headers=ASYNC)
    assert (bad.status_code, gone.status_code) == (422, 404)


async def test_voice_turn_runs_in_the_background_and_is_heard_later(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    accepted = await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("x.wav", speech)},
        headers=ASYNC,
    )
    assert accepted.status_code == 202, accepted.text
    address = accepted.headers["location"]

    ended = (await client.get(address, params={"wait_seconds": 30})).json()
    audio = await client.get(f"{address}/audio")

    assert (ended["status"], ended["modality"]) == ("completed", "voice")
    assert audio.headers["content-type"] == "audio/mpeg"
    assert len(audio.content) > 1000


async def test_waiting_ends_in_time_where_the_turn_does_not(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    body = {"session_id": session_id, "content": "Hi"}
    accepted = await client.post("/messages/text", json=body, headers=ASYNC)
    begun_at = time.monotonic()

    turn = (await client.get(accepted.headers["location"], params={"wait_seconds": 0.3})).json()

    assert 0.25 < time.monotonic() - begun_at < 50
    assert turn["status"] == "in_progress"
    gate.opened.set()


@pytest.mark.parametrize("wait_seconds", ["-1", "61", "nan", "inf", "x", ""])
async def test_wrong_time_is_refused(client: httpx2.AsyncClient, wait_seconds: str) -> None:
    refused = await client.get(f"/turns/{uuid4()}", params={"wait_seconds": wait_seconds})
    assert refused.status_code == 422
    assert "wait_seconds" in refused.json()["detail"]


async def test_nobody_waits_for_a_turn_that_is_not_theirs(client: httpx2.AsyncClient) -> None:
    with anyio.fail_after(50):  # less than it would wait for
        missing = await client.get(f"/turns/{uuid4()}", params={"wait_seconds": 60})
    assert missing.status_code == 404


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres"], indirect=True)
async def test_a_turn_of_another_server_is_waited_for(
    settings: Settings,
    client: httpx2.AsyncClient,
    second_server: StartServer,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    body = {"session_id": session_id, "content": "Hi"}
    accepted = await client.post("/messages/text", json=body, headers=ASYNC)
    await gate.arrived.wait()
    turns: list[dict[str, str]] = []

    async def wait_there(other: httpx2.AsyncClient) -> None:
        response = await other.get(accepted.headers["location"], params={"wait_seconds": 30})
        turns.append(response.json())

    async with (
        second_server() as state,
        client_of(settings, state) as other,
        anyio.create_task_group() as group,
    ):
        group.start_soon(wait_there, other)
        await anyio.sleep(0.2)
        assert not turns
        gate.opened.set()
    assert [turn["status"] for turn in turns] == ["completed"]
