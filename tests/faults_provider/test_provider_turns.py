"""What a provider's own ways mean for whole turns, through the API."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core.config import Settings
from app.core.database import Database
from app.providers import open_providers
from app.services.ports import ChatRequest, ProviderTimeout
from app.services.prompt_lines import PromptMessage
from app.services.resilience import CircuitBreakers, RetryingChatModel
from tests.conftest import AUDIO, IsolatedSettings
from tests.faults_provider.cases import SSE, client_of, make_app, served
from tests.support.provider import Fault, Provider
from tests.support.provider_faults import Planted
from tests.support.sse import parse, text_of

pytestmark = pytest.mark.anyio

TTS_MODEL = "tts-test"


@pytest.fixture
def settings(tmp_path: Path, sqlite_template: Path) -> Settings:
    """What a provider sends does not depend on the database."""
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return IsolatedSettings(data_dir=tmp_path)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.speech.ms_per_character = 10
        yield provider


@pytest.fixture
async def client(
    settings: Settings, database: Database, provider: Provider
) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        served(settings, database, provider, tts_model=TTS_MODEL) as state,
        client_of(make_app(settings), state) as client,
    ):
        yield client


async def open_session(client: httpx2.AsyncClient, **agent: Any) -> str:
    created = (await client.post("/agents", json={"name": "Ada", **agent})).json()
    return (await client.post("/sessions", json={"agent_id": created["id"]})).json()["id"]


async def say(client: httpx2.AsyncClient, session_id: str, words: str = "Hi") -> httpx2.Response:
    body = {"session_id": session_id, "content": words}
    return await client.post("/messages/text", json=body)


async def speak(client: httpx2.AsyncClient, session_id: str) -> httpx2.Response:
    sound = (AUDIO / "anna_01.wav").read_bytes()
    return await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("question.wav", sound)},
        headers=SSE,
    )


@pytest.mark.parametrize("fault", [Fault.THINK_TAGS, Fault.REASONING_CONTENT])
async def test_reasoning_is_not_spoken_stored_or_prompted(
    fault: Fault, provider: Provider, client: httpx2.AsyncClient
) -> None:
    provider.chat.text = "Paris is the capital."
    provider.fail(fault)
    session_id = await open_session(client)

    response = await speak(client, session_id)
    await say(client, session_id, "And now?")

    assert text_of(parse(response.text.splitlines())) == "Paris is the capital."
    said = [request.body["input"] for request in provider.to("speech")]
    assert " ".join(said) == "Paris is the capital."
    stored = (await client.get(f"/sessions/{session_id}")).json()
    prompts = [str(request.body) for request in provider.to("chat")]
    events = [
        event for event in parse(response.text.splitlines()) if event.type != "reasoning.delta"
    ]
    contents = [message["content"] for message in stored["messages"]]
    for text in (str(events), *contents, *prompts):
        assert "Secret" not in text
        assert "think" not in text
    [part] = [part for part in stored["messages"][1]["parts"] if part["type"] == "reasoning"]
    assert "Secret plan." in part["text"], "it is a part of its own"


async def test_tool_calls_without_text_fail_the_turn_for_good(
    provider: Provider, client: httpx2.AsyncClient
) -> None:
    provider.fail(Fault.ONLY_TOOL_CALLS, times=None)

    response = await say(client, await open_session(client))

    assert response.status_code == 502
    assert response.json()["code"] == "tool-calls-unsupported"
    assert len(provider.to("chat")) == 1
    events = (await client.get(f"/turns/{response.json()['turn_id']}/events")).text
    assert parse(events.splitlines())[-1].data["retryable"] is False


async def test_refusal_is_answered_with_its_words(
    provider: Provider, client: httpx2.AsyncClient
) -> None:
    provider.chat.text = "I cannot help with that."
    provider.fail(Fault.REFUSAL)

    answer = (await say(client, await open_session(client))).json()
    turn = (await client.get(f"/turns/{answer['turn_id']}")).json()

    assert answer["content"] == "I cannot help with that."
    assert (turn["status"], turn["finish_reason"]) == ("completed", "content_filter")


async def test_rate_limit_of_one_model_closes_chat_for_no_other(
    provider: Provider, client: httpx2.AsyncClient
) -> None:
    provider.chat.text = "Hello!"
    limited = await open_session(client, model="limited")
    other = await open_session(client)
    provider.planted.append(
        Planted(Fault.STATUS_429_MS, "chat", times=None, retry_after_seconds=0.01)
    )
    for _ in range(3):
        assert (await say(client, limited)).status_code == 503
    provider.planted.clear()

    assert (await say(client, other)).status_code == 200
    assert (await say(client, limited)).status_code == 200


async def test_message_after_a_failed_turn_reaches_a_model_that_wants_alternating_roles(
    provider: Provider, client: httpx2.AsyncClient
) -> None:
    provider.fail(Fault.STATUS_401)
    session_id = await open_session(client)
    assert (await say(client, session_id, "One?")).status_code == 502
    await say(client, session_id, "Two?")
    await say(client, session_id, "Three?")

    messages = provider.to("chat")[-1].body["messages"]

    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[1]["content"] == "One?\n\nTwo?"


def chat_settings(tmp_path: Path, provider: Provider, seconds: int) -> Settings:
    return IsolatedSettings(
        data_dir=tmp_path, openai_base_url=provider.base_url, chat_first_byte_seconds=seconds
    )


HELLO = ChatRequest([PromptMessage("user", "Hello")])


async def test_silence_above_the_setting_ends_the_request_and_is_not_repeated(
    provider: Provider, tmp_path: Path
) -> None:
    provider.chat.first_byte_delay_seconds = 30
    async with open_providers(chat_settings(tmp_path, provider, 1)) as providers:
        chat_model = RetryingChatModel(providers["chat_model"], CircuitBreakers())
        with pytest.raises(ProviderTimeout):
            [item async for item in chat_model.stream(HELLO)]

    assert len(provider.to("chat")) == 1
