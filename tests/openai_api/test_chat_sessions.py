"""Chat completions with `X-Session-Id`: the conversation is a session."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from app.services.ports import ProviderUnavailable
from app.services.prompt_lines import PromptAnswer, PromptCall, PromptResult
from tests.openai_api.test_stored_responses import Json
from tests.support.fake_providers import FakeChatModel

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]

PATH = "/v1/chat/completions"
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def user(text: str) -> Json:
    return {"role": "user", "content": text}


async def chat(
    client: httpx2.AsyncClient,
    name: str,
    *messages: Json,
    headers: dict[str, str] | None = None,
    **body: Any,
) -> httpx2.Response:
    return await client.post(
        PATH,
        json={"model": "agent-ada", "messages": list(messages)} | body,
        headers={"X-Session-Id": name} | (headers or {}),
    )


async def history(client: httpx2.AsyncClient, session_id: str) -> list[str]:
    messages = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    return [message["content"] for message in messages]


async def test_only_what_is_new_is_added(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    first = await chat(client, "chat 1".replace(" ", "-"), user("One"))
    answer = first.json()["choices"][0]["message"]
    system = {"role": "system", "content": "Be kind."}
    second = await chat(client, "chat-1", system, user("One"), answer, user("Two"))
    third = await chat(client, first.headers["x-session-id"], user("Three"))

    assert [each.status_code for each in (first, second, third)] == [200, 200, 200]
    assert len({each.headers["x-session-id"] for each in (first, second, third)}) == 1
    assert await history(client, first.headers["x-session-id"]) == [
        "One", "Hello there!", "Two", "Hello there!", "Three", "Hello there!",
    ]  # fmt: skip
    assert [prompt[0][1] for prompt in chat_model.prompts] == [
        "Be brief.", "Be brief.\n\nBe kind.", "Be brief.",
    ]  # fmt: skip
    turn = (await client.get(f"/turns/{first.headers['x-turn-id']}")).json()
    assert turn["status"] == "completed"


async def test_stream_ends_with_the_stored_answer(client: httpx2.AsyncClient) -> None:
    response = await chat(
        client, "a", user("One"), stream=True, stream_options={"include_usage": True}
    )

    frames = response.text.split("\n\n")
    assert '"role":"assistant"' in frames[0]
    assert '"finish_reason":"stop"' in frames[-4]
    assert '"total_tokens":10' in frames[-3]
    assert frames[-2:] == ["data: [DONE]", ""]
    assert await history(client, response.headers["x-session-id"]) == ["One", "Hello there!"]


async def test_name_is_of_one_agent(client: httpx2.AsyncClient) -> None:
    await client.post("/agents", json={"name": "Eve", "system_prompt": ""})

    ada = await chat(client, "a", user("Hi"))
    eve = await chat(client, "a", user("Hi"), model="agent-eve")
    wrong = await chat(client, ada.headers["x-session-id"], user("Hi"), model="agent-eve")

    assert ada.headers["x-session-id"] != eve.headers["x-session-id"]
    assert wrong.json()["error"]["code"] == "other_agent_answers"


async def test_results_of_the_clients_tools_go_in_the_same_way(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    chat_model.calls = [("weather", "{}")]
    asked = await chat(client, "a", user("Weather?"), tools=[TOOL])
    message = asked.json()["choices"][0]["message"]
    (call,) = message["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Sunny"}

    answer = await chat(client, "a", user("Weather?"), message, result, tools=[TOOL])

    assert answer.status_code == 200, answer.text
    assert list(chat_model.requests[-1].messages[2:]) == [
        PromptAnswer("assistant", "", (PromptCall(call["id"], "weather", "{}"),)),
        PromptResult("tool", "Sunny", call["id"]),
    ]


@pytest.mark.parametrize(
    ("headers", "text"), [({"X-Task": "title_generation"}, "Hi"), ({}, "### Task:\nName it")]
)
async def test_side_requests_of_open_webui_are_not_stored(
    client: httpx2.AsyncClient, headers: dict[str, str], text: str
) -> None:
    response = await chat(client, "a", user(text), headers=headers)

    assert response.status_code == 200
    assert "x-session-id" not in response.headers
    assert (await client.get("/sessions?hidden=true")).json() == []


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_word_has_its_status(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, *, stream: bool
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("It is away.")

    chat_model.while_thinking = be_away
    failed = await chat(client, "a", user("Hi"), stream=stream)

    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "provider_unavailable"


async def test_unknown_or_unspeakable_sessions_are_refused(client: httpx2.AsyncClient) -> None:
    unknown = await chat(client, str(uuid4()), user("Hi"))
    spaced = await chat(client, "a b", user("Hi"))
    long = await chat(client, "a" * 201, user("Hi"))

    assert unknown.status_code == 404
    assert [each.json()["error"]["param"] for each in (spaced, long)] == ["X-Session-Id"] * 2
