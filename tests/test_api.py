"""The twelve tests of the user's document: every endpoint of it, with its meaning."""

from uuid import uuid4

import httpx2
import pytest

from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber

pytestmark = pytest.mark.anyio


async def test_health_is_ok(client: httpx2.AsyncClient) -> None:
    response = await client.get("/health")

    assert response.status_code == 200
    assert response.json() == {"status": "ok"}


async def test_agent_is_created(client: httpx2.AsyncClient) -> None:
    response = await client.post("/agents", json={"name": "Ada", "system_prompt": "Be brief."})

    assert response.status_code == 201
    assert response.json()["name"] == "Ada"
    assert response.json()["system_prompt"] == "Be brief."


async def test_agents_are_listed(client: httpx2.AsyncClient) -> None:
    for name in ("Ada", "Grace"):
        await client.post("/agents", json={"name": name, "system_prompt": ""})

    response = await client.get("/agents")

    assert response.status_code == 200
    assert {agent["name"] for agent in response.json()} == {"Ada", "Grace"}


async def test_agent_is_read_by_id(client: httpx2.AsyncClient, agent_id: str) -> None:
    response = await client.get(f"/agents/{agent_id}")

    assert response.status_code == 200
    assert response.json()["id"] == agent_id


async def test_unknown_agent_is_404(client: httpx2.AsyncClient) -> None:
    response = await client.get(f"/agents/{uuid4()}")

    assert response.status_code == 404
    assert response.json()["code"] == "agent-not-found"


async def test_agent_is_updated(client: httpx2.AsyncClient, agent_id: str) -> None:
    response = await client.put(f"/agents/{agent_id}", json={"system_prompt": "Be kind."})

    assert response.status_code == 200
    assert response.json()["system_prompt"] == "Be kind."
    assert response.json()["name"] == "Ada"


async def test_session_is_created(client: httpx2.AsyncClient, agent_id: str) -> None:
    response = await client.post("/sessions", json={"agent_id": agent_id})

    assert response.status_code == 201
    assert response.json()["agent_id"] == agent_id


async def test_session_of_an_unknown_agent_is_404(client: httpx2.AsyncClient) -> None:
    response = await client.post("/sessions", json={"agent_id": str(uuid4())})

    assert response.status_code == 404


async def test_session_is_read_with_its_full_history(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    response = await client.get(f"/sessions/{session_id}")

    assert response.status_code == 200
    assert [(line["role"], line["content"]) for line in response.json()["messages"]] == [
        ("user", "Hi"),
        ("assistant", "Hello there!"),
    ]


async def test_text_message_is_answered(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    response = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    assert response.status_code == 200
    assert response.json()["role"] == "assistant"
    assert response.json()["content"] == "Hello there!"
    assert chat_model.prompts == [[("system", "Be brief."), ("user", "Hi")]]


async def test_message_to_an_unknown_session_is_404(client: httpx2.AsyncClient) -> None:
    response = await client.post(
        "/messages/text", json={"session_id": str(uuid4()), "content": "Hi"}
    )

    assert response.status_code == 404
    assert response.json()["code"] == "session-not-found"


async def test_voice_message_is_answered_as_mp3(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
) -> None:
    response = await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("question.wav", speech, "audio/wav")},
    )

    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/mpeg"
    assert response.headers["x-transcription"] == transcriber.text
    assert response.content[0] == 0xFF
    assert speaker.said == [("Hello there!", "alloy")]
