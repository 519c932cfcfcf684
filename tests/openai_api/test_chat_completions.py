"""`/v1/models` and `/v1/chat/completions` over HTTP: what is answered, refused and stored."""

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import anyio
import httpx2
import orjson
import pytest
from sqlalchemy import func, select

from app.core.config import Settings
from app.core.database import Database
from app.models import Message, Session, Turn, TurnStatus
from app.services.ports import (
    ChatItem,
    ChatOptions,
    ChatRequest,
    FinishReason,
    ProviderRejected,
    ProviderUnavailable,
    ToolDefinition,
)
from app.services.prompt_lines import PromptAnswer, PromptCall, PromptMessage, PromptResult
from app.state import State
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
NO_SCHEMA = {"type": "json_schema"}
ARRAY_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "list", "schema": {"type": "array"}},
}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}


async def ask(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await client.post(PATH, json={"model": "agent-ada", "messages": [USER]} | body)


def frames(response: httpx2.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    *data, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [orjson.loads(each.removeprefix("data: ")) for each in data]


def clients(state: State) -> list[int]:
    """Return how many clients wait for each turn that runs."""
    running = state["turns"]._turns.values()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return [live.client_count for live in running]


async def count(database: Database, table: type[Any]) -> int | None:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table))


async def test_agents_are_models(client: httpx2.AsyncClient, agent_id: str) -> None:
    await client.post("/agents", json={"name": "Ada", "system_prompt": "Another one."})
    archived = (await client.post("/agents", json={"name": "Old", "system_prompt": ""})).json()
    await client.delete(f"/agents/{archived['id']}")

    listed = (await client.get("/v1/models")).json()
    one = (await client.get("/v1/models/agent-ada")).json()
    by_id = (await client.get(f"/v1/models/{agent_id}")).json()
    gone = await client.get("/v1/models/agent-old")

    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["agent-ada-2", "agent-ada"]
    assert set(one) == {"id", "object", "created", "owned_by", "name"}
    assert (one["object"], one["name"]) == ("model", "Ada")
    assert one == by_id
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "model_not_found"


async def test_agents_of_one_name_that_are_made_at_once_have_slugs_of_their_own(
    client: httpx2.AsyncClient,
) -> None:
    made: list[httpx2.Response] = []

    async def make() -> None:
        made.append(await client.post("/agents", json={"name": "Grace"}))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(make)

    assert [response.status_code for response in made] == [201] * 20
    models = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
    assert len(set(models)) == len(models) >= 20


async def test_slug_stays_when_the_agent_is_renamed(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    await client.put(f"/agents/{agent_id}", json={"name": "Björn Ørsted & Söhne"})
    other = await client.post("/agents", json={"name": "你好", "system_prompt": ""})

    listed = (await client.get("/v1/models")).json()["data"]

    assert other.status_code == 201
    assert [each["id"] for each in listed] == ["agent-agent", "agent-ada"]


async def test_answer_is_a_completion_and_nothing_of_it_is_stored(
    client: httpx2.AsyncClient, database: Database, chat_model: FakeChatModel
) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": "Hello"},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief, too."}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "?"}],
        },
    ]

    response = await ask(client, messages=messages, temperature=0.5, max_tokens=9)

    answer = response.json()
    assert response.status_code == 200
    assert response.headers["x-request-id"] == response.headers["request-id"]
    assert answer["choices"][0]["message"]["content"] == "Hello there!"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "agent-ada"
    assert answer["usage"]["total_tokens"] == 10
    assert chat_model.prompts == [
        [
            ("system", "Be brief.\n\nBe kind.\n\nBe brief, too."),
            ("user", "Hi"),
            ("assistant", "Hello"),
            ("user", "How\n?"),
        ]
    ]
    (asked,) = chat_model.requests
    assert (asked.temperature, asked.max_output_tokens) == (0.5, 9)
    assert [await count(database, each) for each in (Turn, Message, Session)] == [1, 0, 0]
    turn_id = UUID(answer["id"].removeprefix("chatcmpl-"))
    async with database.reading() as db:
        assert await db.scalar(select(Turn.id)) == turn_id


async def test_stream_has_the_same_answer_in_chunks(client: httpx2.AsyncClient) -> None:
    response = await ask(client, stream=True, stream_options={"include_usage": True})

    *chunks, usage = frames(response)
    words = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(words) == "Hello there!"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("name", ["agent-ada", "Ada", "id"])
async def test_model_is_a_slug_a_name_or_an_id(
    client: httpx2.AsyncClient, agent_id: str, name: str
) -> None:
    response = await ask(client, model=agent_id if name == "id" else name)

    assert response.status_code == 200
    assert response.json()["model"] in {name, agent_id}


async def test_name_of_two_agents_is_refused(client: httpx2.AsyncClient) -> None:
    await client.post("/agents", json={"name": "Ada", "system_prompt": ""})

    response = await ask(client, model="Ada")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_truncated_answer_says_so(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    chat_model.finish_reason = FinishReason.LENGTH

    answer = (await ask(client)).json()

    assert answer["choices"][0]["finish_reason"] == "length"


async def test_parameters_reach_the_model(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    response = await ask(
        client,
        top_p=0.9,
        stop=["END", "STOP"],
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"50256": -100},
        reasoning_effort="low",
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        user="anna",
        top_k=3,
        store=True,
        metadata={"a": "b"},
        response_format={"type": "text"},
        n=1,
        logprobs=False,
        functions=None,
    )

    assert response.status_code == 200
    (asked,) = chat_model.requests
    assert asked.tools == (ToolDefinition("weather", "", {"type": "object"}),)
    assert asked.options == ChatOptions(
        top_p=0.9,
        stop=("END", "STOP"),
        seed=7,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"50256": -100},
        reasoning_effort="low",
        tool_choice="function:weather",
        parallel_tool_calls=False,
    )


async def test_calls_and_their_results_are_shown_to_the_model(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "Sunny"}

    response = await ask(client, messages=[USER, CALLING, result], tools=[TOOL])

    assert response.status_code == 200
    assert chat_model.requests[0].messages[1:] == [
        PromptMessage("user", "Hi"),
        PromptAnswer("assistant", "", (PromptCall("c1", "weather", "{}"),)),
        PromptResult("tool", "Sunny", "c1"),
    ]


async def test_allowed_tools_are_the_only_ones_that_the_model_has(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    other = {"type": "function", "function": {"name": "time"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "name": "time"}]}

    await ask(
        client,
        tools=[TOOL, other],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )

    (asked,) = chat_model.requests
    assert [tool.name for tool in asked.tools] == ["time"]
    assert asked.options
    assert asked.options.tool_choice == "required"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
FUNCTION: dict[str, Any] = {"type": "function"}


@pytest.mark.parametrize(
    ("param", "code", "changes"),
    [
        ("model", "missing_required_parameter", {"model": None}),
        ("messages", "missing_required_parameter", {"messages": None}),
        ("messages", "invalid_value", {"messages": []}),
        ("messages", "invalid_value", {"messages": "Hi"}),
        ("messages[0].role", "invalid_value", {"messages": [{"role": "x", "content": "Hi"}]}),
        ("messages[0].content", "missing_required_parameter", {"messages": [{"role": "user"}]}),
        ("messages[0].content", "invalid_value", {"messages": [{"role": "user", "content": 1}]}),
        (
            "messages[0].content[0]",
            "unsupported_value",
            {"messages": [{"role": "user", "content": [IMAGE]}]},
        ),
        (
            "messages[0].content[0].text",
            "invalid_value",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        ),
        ("messages[1]", "invalid_value", {"messages": [CALLING, USER]}),
        ("messages", "invalid_value", {"messages": [USER, CALLING]}),
        (
            "messages[0].tool_call_id",
            "invalid_value",
            {"messages": [{"role": "tool", "tool_call_id": "c9", "content": ""}]},
        ),
        (
            "messages[0].tool_calls[0].function",
            "missing_required_parameter",
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c1"}]}]},
        ),
        ("temperature", "invalid_value", {"temperature": 3}),
        ("temperature", "invalid_value", {"temperature": "warm"}),
        ("top_p", "invalid_value", {"top_p": -1}),
        ("max_tokens", "invalid_value", {"max_tokens": 0}),
        ("stream", "invalid_value", {"stream": "often"}),
        ("n", "unsupported_parameter", {"n": 2}),
        ("logprobs", "unsupported_parameter", {"logprobs": True}),
        ("top_logprobs", "unsupported_parameter", {"top_logprobs": 2}),
        ("functions", "unsupported_parameter", {"functions": [TOOL]}),
        ("function_call", "unsupported_parameter", {"function_call": "auto"}),
        ("modalities", "unsupported_parameter", {"modalities": ["text", "audio"]}),
        ("audio", "unsupported_parameter", {"audio": {"voice": "alloy"}}),
        ("web_search_options", "unsupported_parameter", {"web_search_options": {}}),
        ("response_format.type", "invalid_value", {"response_format": {"type": "xml"}}),
        ("response_format.json_schema", "invalid_value", {"response_format": NO_SCHEMA}),
        ("response_format.json_schema.schema", "invalid_value", {"response_format": ARRAY_FORMAT}),
        ("tools[0].type", "unsupported_value", {"tools": [{"type": "web_search"}]}),
        ("tools[0].function", "missing_required_parameter", {"tools": [FUNCTION]}),
        (
            "tools[0].function.name",
            "invalid_value",
            {"tools": [{**FUNCTION, "function": {"name": "a b"}}]},
        ),
        (
            "tools[0].function.parameters",
            "invalid_value",
            {"tools": [{**FUNCTION, "function": {"name": "a", "parameters": 1}}]},
        ),
        ("tools", "invalid_value", {"tools": [TOOL, TOOL]}),
        ("tool_choice", "invalid_value", {"tool_choice": "required"}),
        ("tool_choice", "invalid_value", {"tools": [TOOL], "tool_choice": "sometimes"}),
        ("tool_choice", "invalid_value", {"tools": [TOOL], "tool_choice": {"type": "function"}}),
        ("tool_choice.allowed_tools.tools", "missing_required_parameter", {
            "tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}},
        }),
    ],
)  # fmt: skip
async def test_bad_parameter_is_named_and_nothing_begins(
    client: httpx2.AsyncClient,
    database: Database,
    param: str,
    code: str,
    changes: dict[str, Any],
) -> None:
    response = await ask(client, **changes)

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"].endswith(".")
    assert await count(database, Turn) == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"model": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000]
)
async def test_broken_body_is_400_in_the_same_shape(
    client: httpx2.AsyncClient, body: bytes
) -> None:
    response = await client.post(PATH, content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_all_errors_under_v1_have_the_same_shape(
    client: httpx2.AsyncClient, settings: Settings, state: State
) -> None:
    async with client_of(settings, state, peer="203.0.113.9") as stranger:
        answers = {
            "unknown_url": (404, await client.get("/v1/files")),
            "model_not_found": (404, await ask(client, model="gpt-5")),
            "method_not_allowed": (405, await client.put("/v1/models", json={})),
            "invalid_api_key": (401, await stranger.get("/v1/models")),
            "unsupported_media_type": (415, await client.post(PATH, content=b"x")),
        }

    for code, (status, response) in answers.items():
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert set(error) == {"message", "type", "param", "code"}
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"]


async def test_prompt_that_is_too_long_has_the_code_on_which_clients_compact(
    client: httpx2.AsyncClient,
) -> None:
    response = await ask(client, messages=[{"role": "user", "content": "word " * 40_000}])

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "messages"


@pytest.mark.parametrize("header", ["Authorization", "api-key", "x-api-key"])
async def test_key_of_ours_is_taken_from_each_header_and_needs_its_scope(
    client: httpx2.AsyncClient, header: str
) -> None:
    body = {"name": "reader", "scopes": ["agents:read"]}
    key = (await client.post("/keys", json=body)).json()["key"]
    headers = {header: f"Bearer {key}" if header == "Authorization" else key}

    listed = await client.get("/v1/models", headers=headers)
    asked = await client.post(
        PATH, json={"model": "agent-ada", "messages": [USER]}, headers=headers
    )

    assert listed.status_code == 200
    assert asked.status_code == 403
    assert asked.json()["error"]["type"] == "permission_error"


async def test_any_bearer_is_no_key_on_the_own_machine(client: httpx2.AsyncClient) -> None:
    response = await client.get("/v1/models", headers={"Authorization": "Bearer sk-none"})

    assert response.status_code == 200


async def test_agents_of_another_workspace_are_not_found(
    client: httpx2.AsyncClient, agent_id: str
) -> None:
    other = (await client.post("/workspaces", json={"name": "other"})).json()["id"]
    headers = {"X-Workspace-Id": other}
    body = {"model": agent_id, "messages": [USER]}

    asked = await client.post(PATH, json=body, headers=headers)
    listed = await client.get("/v1/models", headers=headers)

    assert asked.status_code == 404
    assert listed.json()["data"] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_before_the_first_word_has_its_status(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, stream: bool
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("It said no.")

    async def be_away() -> None:
        raise ProviderUnavailable("It is away.")

    chat_model.while_thinking = refuse
    refused = await ask(client, stream=stream)
    chat_model.while_thinking = be_away
    failed = await ask(client, stream=stream)

    assert refused.status_code == 400
    assert refused.headers["x-should-retry"] == "false"
    assert failed.status_code == 503
    assert failed.headers["retry-after"]
    assert "x-should-retry" not in failed.headers
    assert failed.json()["error"]["type"] == "server_error"


async def test_failure_in_mid_stream_is_an_error_and_no_finish_reason(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    chat_model.answer = "One two"
    chat_model.counts = (None, None, None)
    chat_model.finish_reason = FinishReason.STOP
    original = chat_model.stream

    async def break_off(request: ChatRequest) -> AsyncGenerator[ChatItem]:
        async for item in original(request):
            yield item
            raise ProviderUnavailable("It broke off.")

    chat_model.stream = break_off
    response = await ask(client, stream=True)

    *chunks, error = frames(response)
    assert response.status_code == 200
    assert error["error"]["code"] == "provider_unavailable"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_cancels_the_turn(
    state: State,
    settings: Settings,
    database: Database,
    chat_model: FakeChatModel,
    stream: bool,
) -> None:
    chat_model.while_thinking = gate = Gate()

    async with client_of(settings, state) as leaving, anyio.create_task_group() as group:
        group.start_soon(lambda: ask(leaving, stream=stream))
        await gate.arrived.wait()
        group.cancel_scope.cancel()
    await wait_until_settled(database)

    async with database.reading() as db:
        assert await db.scalar(select(Turn.status)) is TurnStatus.CANCELLED


async def test_equal_requests_with_one_key_are_one_turn_while_it_runs(
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
) -> None:
    chat_model.while_thinking = gate = Gate()
    answers: list[httpx2.Response] = []
    body = {"model": "agent-ada", "messages": [USER]}
    headers = {"Idempotency-Key": "k1"}

    async def send() -> None:
        answers.append(await client.post(PATH, json=body, headers=headers))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await gate.arrived.wait()
        group.start_soon(send)
        await until(lambda: clients(state) == [2])
        gate.opened.set()
    late = await client.post(PATH, json=body, headers=headers)
    other = await client.post(PATH, json=body | {"seed": 1}, headers=headers)

    assert [each.status_code for each in answers] == [200, 200]
    assert await count(database, Turn) == 1
    assert late.status_code == 409
    assert late.headers["x-should-retry"] == "false"
    assert late.json()["error"]["code"] == "answer_not_kept"
    assert other.json()["error"]["code"] == "idempotency_key_reused"
