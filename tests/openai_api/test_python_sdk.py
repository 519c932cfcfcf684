"""The official Python SDK against a real server: what its users do, and what can go wrong."""

import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import EasyInputMessageParam, FunctionToolParam
from pydantic import BaseModel

from tests.openai_api.conftest import add_agent, server_of
from tests.support.provider import Fault, Provider
from tests.support.server_process import ServerProcess
from tests.support.waiting import until_sync

WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
HI: ChatCompletionMessageParam = {"role": "user", "content": "Hi"}


class TicketOrder(BaseModel):
    city: str
    tickets: int


pytestmark = pytest.mark.usefixtures("provider")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with sdk(server) as client:
        yield client


def sdk(server: ServerProcess, *, max_retries: int = 2) -> OpenAI:
    url = f"{server.url}/v1"
    return OpenAI(base_url=url, api_key="none", timeout=60, max_retries=max_retries)


def turns(server: ServerProcess) -> list[tuple[str, str | None]]:
    """Return status and error code of the server's turns, the newest first."""
    with server.client() as client:
        listed = client.get("/turns").json()
    errors: list[dict[str, str]] = [each["error"] or {} for each in listed]
    return [(each["status"], error.get("code")) for each, error in zip(listed, errors, strict=True)]


def test_agents_are_listed_as_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["agent-ada"]
    assert client.models.retrieve("agent-ada").owned_by == "agent-platform"


def test_three_turns_with_the_history_of_the_client(client: OpenAI, provider: Provider) -> None:
    messages: list[ChatCompletionMessageParam] = []

    for words in ("One", "Two", "Three"):
        messages.append({"role": "user", "content": words})
        answer = client.chat.completions.create(model="agent-ada", messages=messages)
        content = answer.choices[0].message.content
        messages.append({"role": "assistant", "content": content})
        assert content == "Hello! How can I help you today?"
        assert answer.usage
        assert answer.usage.total_tokens > 0
        assert answer.choices[0].finish_reason == "stop"

    last = provider.to("chat")[-1].body["messages"]
    assert [line["role"] for line in last] == ["system", *["user", "assistant"] * 2, "user"]


def test_stream_with_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="agent-ada", messages=[HI], stream=True, stream_options={"include_usage": True}
    )

    chunks = list(stream)
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text == "Hello! How can I help you today?"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens > 0


def test_helper_of_streams_collects_the_answer(client: OpenAI) -> None:
    with client.chat.completions.stream(model="agent-ada", messages=[HI]) as stream:
        events = [event.type for event in stream]
        answer = stream.get_final_completion()

    assert answer.choices[0].message.content == "Hello! How can I help you today?"
    assert events[-1] == "content.done"


def test_silence_is_filled_with_comments_that_are_no_events(
    client: OpenAI, provider: Provider
) -> None:
    provider.chat.text = "Wait for it"
    provider.chat.first_byte_delay_seconds = 11

    stream = client.chat.completions.create(model="agent-ada", messages=[HI], stream=True)

    assert "".join(each.choices[0].delta.content or "" for each in stream) == "Wait for it"


def test_calls_of_the_clients_tools_and_their_results(client: OpenAI, provider: Provider) -> None:
    provider.chat.calls = [("weather", '{"city": "Bern"}'), ("weather", '{"city": "Rome"}')]
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Weather?"}]

    asked = client.chat.completions.create(model="agent-ada", messages=messages, tools=[WEATHER])
    with client.chat.completions.stream(
        model="agent-ada", messages=messages, tools=[WEATHER]
    ) as stream:
        streamed = stream.get_final_completion() if list(stream) else None
    message = asked.choices[0].message
    calls = message.tool_calls or []
    messages.append({
        "role": "assistant",
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in calls
            if call.type == "function"
        ],
    })  # fmt: skip
    results: list[ChatCompletionMessageParam] = [
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny"} for call in calls
    ]
    messages += results
    answer = client.chat.completions.create(model="agent-ada", messages=messages, tools=[WEATHER])

    assert asked.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    arguments = [call.function.arguments for call in calls if call.type == "function"]
    assert arguments == ['{"city": "Bern"}', '{"city": "Rome"}']
    assert streamed
    again = streamed.choices[0].message.tool_calls or []
    assert [call.function.arguments for call in again] == arguments
    assert answer.choices[0].message.content == "Hello! How can I help you today?"
    shown = provider.to("chat")[-1].body["messages"]
    assert [line["role"] for line in shown] == ["system", "user", "assistant", "tool", "tool"]
    assert [line["tool_call_id"] for line in shown[-2:]] == [call.id for call in calls]


def test_errors_have_their_class_code_and_parameter(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-5", messages=[HI])
    with pytest.raises(openai.BadRequestError) as several:
        client.chat.completions.create(model="agent-ada", messages=[HI], n=2)

    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert unknown.value.request_id
    assert (several.value.code, several.value.param) == ("unsupported_parameter", "n")


def test_wrong_key_is_an_authentication_error(server: ServerProcess) -> None:
    wrong = f"ap_{'a' * 8}_{'b' * 49}"
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key=wrong) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.models.list()

    assert refused.value.code == "invalid_api_key"


def test_key_of_ours_with_its_scope(server: ServerProcess) -> None:
    with server.client() as admin:
        body = {"name": "app", "scopes": ["turns:write", "agents:read"]}
        key = admin.post("/keys", json=body).json()["key"]
    with OpenAI(base_url=f"{server.url}/v1", api_key=key) as client:
        answer = client.chat.completions.create(model="agent-ada", messages=[HI])

    assert answer.choices[0].message.content


def test_failure_of_the_provider_is_tried_again_by_the_sdk(
    server: ServerProcess, client: OpenAI, provider: Provider
) -> None:
    provider.fail(Fault.STATUS_500, "chat", times=3)  # as often as the server tries itself

    answer = client.chat.completions.create(model="agent-ada", messages=[HI])

    assert answer.choices[0].message.content
    assert [status for status, _ in turns(server)[:2]] == ["completed", "failed"]


def test_failure_in_mid_stream_is_raised(client: OpenAI, provider: Provider) -> None:
    provider.chat.text = "one two three four five six"
    provider.chat.token_delay_seconds = 0.05
    provider.fail(Fault.RESET_AT_TOKEN, "chat", at=4)

    stream = client.chat.completions.create(model="agent-ada", messages=[HI], stream=True)

    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.code in {"upstream_incomplete", "provider_unavailable"}


def test_stream_that_is_closed_stops_the_turn_and_the_provider(
    server: ServerProcess, client: OpenAI, provider: Provider
) -> None:
    provider.chat.text = "word " * 1000
    provider.chat.token_delay_seconds = 0.05

    with client.chat.completions.create(model="agent-ada", messages=[HI], stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break

    assert provider.wait_until(lambda: provider.to("chat")[0].is_aborted)
    until_sync(lambda: turns(server)[0] == ("cancelled", "turn-cancelled"))


def test_client_whose_patience_ends_is_answered_by_a_new_turn(
    server: ServerProcess, provider: Provider
) -> None:
    provider.chat.first_byte_delay_seconds = 600
    with sdk(server, max_retries=0) as client, pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).chat.completions.create(model="agent-ada", messages=[HI])
    until_sync(lambda: turns(server)[0] == ("cancelled", "turn-cancelled"))
    provider.chat.first_byte_delay_seconds = 0

    with sdk(server) as client:
        answer = client.chat.completions.create(model="agent-ada", messages=[HI])

    assert answer.choices[0].message.content


def test_key_of_an_answered_request_is_refused_once_and_not_tried_again(
    client: OpenAI, provider: Provider
) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    client.chat.completions.create(model="agent-ada", messages=[HI], extra_headers=headers)

    with pytest.raises(openai.ConflictError) as again:
        client.chat.completions.create(model="agent-ada", messages=[HI], extra_headers=headers)

    assert again.value.code == "answer_not_kept"
    assert len(provider.to("chat")) == 1


def test_killed_server_fails_its_turns_and_runs_none_again(
    tmp_path: Path, provider: Provider
) -> None:
    provider.chat.text = "word " * 1000
    provider.chat.token_delay_seconds = 0.05
    with server_of(tmp_path, provider) as server:
        add_agent(server)
        with sdk(server, max_retries=0) as client:
            stream = client.chat.completions.create(model="agent-ada", messages=[HI], stream=True)
            next(iter(stream))
            server.kill()
            with pytest.raises((openai.APIConnectionError, openai.APIError)):
                list(stream)
        server.start()
        until_sync(lambda: turns(server) == [("failed", "turn-interrupted")])

    assert len(provider.to("chat")) == 1


def test_stopped_server_lets_an_answer_end(tmp_path: Path, provider: Provider) -> None:
    provider.chat.text = "one two three four five six seven eight"
    provider.chat.token_delay_seconds = 0.2
    with server_of(tmp_path, provider) as server:
        add_agent(server)
        with sdk(server) as client:
            stream = client.chat.completions.create(model="agent-ada", messages=[HI], stream=True)
            first = next(iter(stream))
            assert server.process
            server.process.send_signal(signal.SIGTERM)
            rest = "".join(each.choices[0].delta.content or "" for each in stream)

    assert first.choices[0].delta.role == "assistant"
    assert rest == provider.chat.text


def test_response_that_is_not_stored(client: OpenAI) -> None:
    answer = client.responses.create(model="agent-ada", input="Hi", store=False)
    with client.responses.stream(model="agent-ada", input="Hi", store=False) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_response()

    said = "Hello! How can I help you today?"
    assert (answer.output_text, streamed.output_text) == (said, said)
    assert answer.usage
    assert answer.usage.input_tokens > 0
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


def test_calls_and_their_outputs_in_responses(client: OpenAI, provider: Provider) -> None:
    provider.chat.calls = [("weather", '{"city": "Bern"}')]
    tool: FunctionToolParam = {
        "type": "function",
        "name": "weather",
        "parameters": {"type": "object"},
        "strict": False,
    }
    question: EasyInputMessageParam = {"role": "user", "content": "Weather?"}

    asked = client.responses.create(model="agent-ada", input=[question], tools=[tool], store=False)
    (call,) = asked.output
    assert call.type == "function_call"
    answer = client.responses.create(
        model="agent-ada",
        input=[
            question,
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
            },
            {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"},
        ],
        tools=[tool],
        store=False,
    )

    assert call.arguments == '{"city": "Bern"}'
    assert answer.output_text == "Hello! How can I help you today?"


def test_typed_answer_is_parsed(client: OpenAI, provider: Provider) -> None:
    provider.chat.text = '{"city": "Oslo", "tickets": 2}'

    answer = client.chat.completions.parse(
        model="agent-ada", messages=[HI], response_format=TicketOrder
    )

    assert answer.choices[0].message.parsed == TicketOrder(city="Oslo", tickets=2)
