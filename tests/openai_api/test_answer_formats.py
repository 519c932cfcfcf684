"""`response_format` and `text.format`: JSON that was validated, in one piece once it is valid."""

from typing import Any

import httpx2
import orjson
import pytest

from tests.support.scripted_tools import ScriptedChatModel

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"count": {"type": "integer", "maximum": 9}},
    "required": ["count"],
    "additionalProperties": False,
}
DEFINITION = {"name": "place", "schema": SCHEMA, "strict": True}
VALUE = "7733117733117"  # longer than any group of digits of an id
VALID, INVALID = '{"count": 3}', f'{{"count": {VALUE}}}'
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "How many?"}],
        "response_format": {"type": "json_schema", "json_schema": DEFINITION},
    },
    "/v1/responses": {
        "input": "How many?",
        "store": False,
        "text": {"format": {"type": "json_schema", **DEFINITION}},
    },
}


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel()


async def ask(client: httpx2.AsyncClient, path: str, **more: Any) -> httpx2.Response:
    return await client.post(path, json={"model": "agent-ada"} | REQUESTS[path] | more)


def text_of(answer: dict[str, Any]) -> str:
    if "choices" in answer:
        return answer["choices"][0]["message"]["content"]
    return answer["output"][0]["content"][0]["text"]


def deltas(stream: str) -> list[str]:
    events = [orjson.loads(line[6:]) for line in stream.split("\n") if line.startswith("data: {")]
    of_chat = [event["choices"][0]["delta"] for event in events if event.get("choices")]
    texts = [delta["content"] for delta in of_chat if delta.get("content")]
    return texts + [e["delta"] for e in events if e.get("type") == "response.output_text.delta"]


@pytest.mark.parametrize("draft", ["http://json-schema.org/draft-07/schema#", "anything"])
async def test_draft_that_a_schema_names_is_not_looked_at(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel, draft: str
) -> None:
    chat_model.script = [(VALID,)]
    named = {**DEFINITION, "schema": {"$schema": draft, **SCHEMA}}

    answer = await ask(
        client,
        "/v1/chat/completions",
        response_format={"type": "json_schema", "json_schema": named},
    )

    assert answer.status_code == 200, answer.text
    asked = chat_model.requests[0].response_format
    assert asked
    assert asked.schema == SCHEMA


@pytest.mark.parametrize("path", REQUESTS)
async def test_answer_that_breaks_the_schema_is_corrected(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel, path: str
) -> None:
    chat_model.script = [(INVALID,), (VALID,)]

    answer = await ask(client, path)

    assert answer.status_code == 200, answer.text
    assert text_of(answer.json()) == VALID
    asked = chat_model.requests[0].response_format
    assert asked
    assert (asked.name, asked.schema, asked.is_strict) == ("place", SCHEMA, True)


@pytest.mark.parametrize("path", REQUESTS)
async def test_stream_has_nothing_of_an_answer_that_was_rejected(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel, path: str
) -> None:
    chat_model.script = [(INVALID,), (VALID,)]

    assert deltas((await ask(client, path, stream=True)).text) == [VALID]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", REQUESTS)
async def test_answer_that_stays_invalid_is_an_error(
    client: httpx2.AsyncClient,
    chat_model: ScriptedChatModel,
    path: str,
    stream: bool,  # a parameter of the test
) -> None:
    chat_model.script = [(INVALID,), (INVALID,)]

    refused = await ask(client, path, stream=stream)

    assert refused.status_code == 502, refused.text
    assert refused.json()["error"]["code"] == "output_invalid"
    assert VALUE not in refused.text


@pytest.mark.parametrize("path", REQUESTS)
async def test_agents_own_schema_holds_too(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel, agent_id: str, path: str
) -> None:
    await client.put(f"/agents/{agent_id}", json={"output_schema": SCHEMA})
    chat_model.script = [(INVALID,), (VALID,)]
    plain = {"response_format": None} if path.endswith("completions") else {"text": None}

    assert deltas((await ask(client, path, stream=True, **plain)).text) == [VALID]


async def test_any_object_may_be_asked_for(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [("[]",), ('{"a": 1}',)]
    form = {"type": "json_object"}

    answer = await ask(client, "/v1/chat/completions", response_format=form)

    assert text_of(answer.json()) == '{"a": 1}'


async def test_calls_of_the_callers_tools_end_the_turn_without_an_answer(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [(("weather", "{}"),)]
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

    answer = await ask(client, "/v1/chat/completions", tools=[tool])

    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
