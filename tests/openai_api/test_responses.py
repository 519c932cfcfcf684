"""`POST /v1/responses` over HTTP: what is answered, shown to the model, and refused."""

from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.models import Message, Turn
from app.services.prompt_lines import PromptAnswer, PromptCall, PromptMessage, PromptResult
from tests.support.fake_providers import FakeChatModel

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "Sunny"}


async def ask(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    given = {"model": "agent-ada", "input": "Hi", "store": False} | body
    return await client.post("/v1/responses", json=given)


async def test_answer_is_a_response_with_every_field(
    client: httpx2.AsyncClient, database: Database, chat_model: FakeChatModel
) -> None:
    response = await ask(
        client, instructions="Be kind.", metadata={"a": "b"}, temperature=0.5, max_output_tokens=9
    )

    answer = response.json()
    assert response.status_code == 200, response.text
    assert (answer["object"], answer["status"], answer["store"]) == ("response", "completed", False)
    assert answer["output"][0]["content"][0]["text"] == "Hello there!"
    assert answer["metadata"] == {"a": "b"}
    assert answer["usage"]["total_tokens"] == 10
    assert (answer["temperature"], answer["max_output_tokens"], answer["top_p"]) == (0.5, 9, 1.0)
    absent = {
        "previous_response_id", "error", "incomplete_details", "reasoning", "user", "conversation",
    }  # fmt: skip
    assert all(answer[name] is None for name in absent)
    assert chat_model.prompts == [[("system", "Be brief.\n\nBe kind."), ("user", "Hi")]]
    async with database.reading() as db:
        counts = [
            await db.scalar(select(func.count()).select_from(table)) for table in (Turn, Message)
        ]
    assert counts == [1, 0]


async def test_stream_ends_with_the_same_response(client: httpx2.AsyncClient) -> None:
    response = await ask(client, stream=True)

    *_, last, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert last.startswith("event: response.completed\n")
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_items_become_the_prompt(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    said = {"type": "message", "role": "assistant", "id": "msg_1", "content": [
        {"type": "output_text", "text": "Let me see."},
    ]}  # fmt: skip
    thought: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": []}
    second = {**CALL, "call_id": "c2"}
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        thought,
        said,
        CALL,
        second,
        {**OUTPUT, "call_id": "c2"},
        OUTPUT,
    ]

    response = await ask(client, input=items, tools=[TOOL])

    assert response.status_code == 200, response.text
    calls = (PromptCall("c1", "weather", "{}"), PromptCall("c2", "weather", "{}"))
    assert chat_model.requests[0].messages[1:] == [
        PromptMessage("user", "Weather?"),
        PromptAnswer("assistant", "Let me see.", calls),
        PromptResult("tool", "Sunny", "c2"),
        PromptResult("tool", "Sunny", "c1"),
    ]
    assert chat_model.prompts[0][0] == ("system", "Be brief.\n\nBe kind.")
    assert chat_model.requests[0].tools[0].is_strict


@pytest.mark.parametrize(
    ("param", "code", "changes"),
    [
        ("input", "missing_required_parameter", {"input": None}),
        ("model", "missing_required_parameter", {"model": None}),
        ("previous_response_id", "previous_response_not_found", {
            "previous_response_id": "resp_1",
        }),
        ("prompt", "unsupported_parameter", {"prompt": {"id": "pmpt_1"}}),
        ("conversation", "unsupported_parameter", {"conversation": "conv_1"}),
        ("background", "invalid_value", {"background": True}),
        ("truncation", "unsupported_value", {"truncation": "auto"}),
        ("text.format.type", "invalid_value", {"text": {"format": {"type": "xml"}}}),
        ("text.format.name", "invalid_value", {"text": {"format": {"type": "json_schema"}}}),
        ("tools[0].type", "unsupported_value", {"tools": [{"type": "web_search"}]}),
        ("tools[0].name", "invalid_value", {"tools": [{"type": "function", "name": "a b"}]}),
        ("input[0].id", "invalid_value", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("input[0].type", "unsupported_value", {"input": [{"type": "web_search_call"}]}),
        ("input[0].call_id", "invalid_value", {"input": [OUTPUT]}),
        ("input[0].name", "invalid_value", {"input": [{**CALL, "name": 1}]}),
        ("input[1].output", "missing_required_parameter", {
            "input": [CALL, {**OUTPUT, "output": None}],
        }),
        ("input", "invalid_value", {"input": [CALL]}),
        ("input[1]", "invalid_value", {"input": [CALL, {"role": "user", "content": "Hi"}]}),
    ],
)  # fmt: skip
async def test_bad_parameter_is_named(
    client: httpx2.AsyncClient, param: str, code: str, changes: dict[str, Any]
) -> None:
    response = await ask(client, **changes)

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"]) == (param, code)
