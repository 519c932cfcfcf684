"""The official Python SDK with responses that are stored, conversations, and what breaks."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall
from pydantic import BaseModel

from tests.openai_api.conftest import add_agent, server_of
from tests.support.provider import Fault, Provider
from tests.support.server_process import ServerProcess
from tests.support.waiting import until_sync

SAID = "Hello! How can I help you today?"
WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
pytestmark = pytest.mark.usefixtures("provider")


class TicketOrder(BaseModel):
    city: str
    tickets: int


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with sdk(server) as client:
        yield client


def sdk(server: ServerProcess, *, max_retries: int = 2) -> OpenAI:
    url = f"{server.url}/v1"
    return OpenAI(base_url=url, api_key="none", timeout=60, max_retries=max_retries)


def test_three_turns_with_previous_responses(client: OpenAI, provider: Provider) -> None:
    previous: str | None = None
    for words in ("One", "Two", "Three"):
        answer = client.responses.create(
            model="agent-ada", input=words, previous_response_id=previous
        )
        previous = answer.id
        assert answer.output_text == SAID

    last = provider.to("chat")[-1].body["messages"]
    assert [line["role"] for line in last] == ["system", *["user", "assistant"] * 2, "user"]
    assert previous
    assert client.responses.retrieve(previous).output_text == SAID
    (item,) = client.responses.input_items.list(previous).data
    assert item.type == "message"
    client.responses.delete(previous)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(previous)


def test_conversation_with_items(client: OpenAI, provider: Provider) -> None:
    conversation = client.conversations.create(
        metadata={"topic": "demo"},
        items=[{"type": "message", "role": "user", "content": "Call me Al."}],
    )
    first = client.responses.create(model="agent-ada", input="Hi", conversation=conversation.id)
    client.conversations.items.create(
        conversation.id, items=[{"type": "message", "role": "user", "content": "By the way"}]
    )
    client.responses.create(model="agent-ada", input="Go on", conversation=conversation.id)

    assert first.conversation
    assert first.conversation.id == conversation.id
    said = [line["content"] for line in provider.to("chat")[-1].body["messages"][1:]]
    assert said == ["Call me Al.\n\nHi", SAID, "By the way\n\nGo on"]
    items = list(client.conversations.items.list(conversation.id, limit=2))
    assert len(items) == 6
    assert client.conversations.items.retrieve(str(items[0].id), conversation_id=conversation.id)
    client.conversations.items.delete(str(items[0].id), conversation_id=conversation.id)
    assert client.conversations.update(conversation.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(conversation.id).object == "conversation"
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(conversation.id)


def test_tools_are_answered_by_the_next_response(client: OpenAI, provider: Provider) -> None:
    provider.chat.calls = [("weather", '{"city": "Bern"}')]
    with client.responses.stream(model="agent-ada", input="Weather?", tools=[WEATHER]) as stream:
        asked = stream.get_final_response() if list(stream) else None
    assert asked
    (call,) = asked.output
    assert isinstance(call, ResponseFunctionToolCall)

    answer = client.responses.create(
        model="agent-ada",
        previous_response_id=asked.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}],
        tools=[WEATHER],
    )

    assert call.arguments == '{"city": "Bern"}'
    assert answer.output_text == SAID
    shown = provider.to("chat")[-1].body["messages"]
    assert [line["role"] for line in shown] == ["system", "user", "assistant", "tool"]
    assert shown[-1]["tool_call_id"] == call.call_id


def test_typed_answer_is_parsed_and_kept(client: OpenAI, provider: Provider) -> None:
    provider.chat.text = '{"city": "Oslo", "tickets": 2}'

    answer = client.responses.parse(model="agent-ada", input="Two", text_format=TicketOrder)

    assert answer.output_parsed == TicketOrder(city="Oslo", tickets=2)
    again = client.responses.retrieve(answer.id)
    assert again.output_text == answer.output_text
    assert again.text
    assert again.text.format
    assert again.text.format.type == "json_schema"


def test_stream_that_breaks_off_is_resumed_where_it_was(client: OpenAI, provider: Provider) -> None:
    provider.chat.token_delay_seconds = 0.05
    stream = client.responses.create(model="agent-ada", input="Hi", stream=True, background=True)
    seen = [next(stream) for _ in range(5)]
    stream.close()
    created = seen[0]
    assert created.type == "response.created"

    rest = list(
        client.responses.retrieve(
            created.response.id, stream=True, starting_after=seen[-1].sequence_number
        )
    )

    numbers = [event.sequence_number for event in (*seen, *rest)]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == SAID
    with client.responses.stream(response_id=created.response.id, starting_after=2) as again:
        assert again.get_final_response().output_text == SAID


def test_background_is_asked_for_until_it_has_ended(client: OpenAI, provider: Provider) -> None:
    provider.chat.first_byte_delay_seconds = 0.2
    begun = client.responses.create(model="agent-ada", input="Hi", background=True)
    assert begun.status == "in_progress"

    until_sync(lambda: client.responses.retrieve(begun.id).status == "completed")

    provider.chat.first_byte_delay_seconds = 600
    slow = client.responses.create(model="agent-ada", input="Hi", background=True)
    assert client.responses.cancel(slow.id).status == "cancelled"
    assert client.responses.cancel(slow.id).status == "cancelled"


def test_impatient_client_finds_its_turn_when_it_asks_again(
    server: ServerProcess, provider: Provider
) -> None:
    provider.chat.first_byte_delay_seconds = 1.5
    with sdk(server, max_retries=5) as client:
        answer = client.with_options(timeout=0.8).responses.create(model="agent-ada", input="Hi")

    assert answer.output_text == SAID
    assert len(provider.to("chat")) == 1


def test_failure_of_the_provider_is_the_next_attempt_of_the_same_turn(
    client: OpenAI, provider: Provider, server: ServerProcess
) -> None:
    provider.fail(Fault.STATUS_500, "chat", times=3)  # as often as the server tries itself

    answer = client.responses.create(model="agent-ada", input="Hi")

    assert answer.output_text == SAID
    with server.client() as native:
        turn = native.get(f"/turns/{answer.id.removeprefix('resp_')}").json()
    assert turn["attempt"] == 2


def test_failure_in_mid_stream_is_a_failed_response(client: OpenAI, provider: Provider) -> None:
    provider.chat.text = "one two three four five six"
    provider.chat.token_delay_seconds = 0.05
    provider.fail(Fault.RESET_AT_TOKEN, "chat", at=4)

    events = list(client.responses.create(model="agent-ada", input="Hi", stream=True))

    assert events[-1].type == "response.failed"
    kept = client.responses.retrieve(events[-1].response.id)
    assert kept.status == "failed"
    assert kept.error
    assert kept.error.code == "server_error"


def test_killed_server_finishes_the_response_at_its_next_start(
    tmp_path: Path, provider: Provider
) -> None:
    provider.chat.token_delay_seconds = 0.1
    with server_of(tmp_path, provider) as server:
        add_agent(server)
        with sdk(server, max_retries=0) as client:
            stream = client.responses.create(model="agent-ada", input="Hi", stream=True)
            seen = [next(stream) for _ in range(5)]
            server.kill()
        server.start()
        created = seen[0]
        assert created.type == "response.created"
        with sdk(server) as client:
            rest = list(
                client.responses.retrieve(
                    created.response.id, stream=True, starting_after=seen[-1].sequence_number
                )
            )

    numbers = [event.sequence_number for event in (*seen, *rest)]
    assert numbers == sorted(set(numbers))
    assert rest[-1].type == "response.completed"
    assert rest[-1].response.output_text == SAID
