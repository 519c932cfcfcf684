"""Answers as JSON: asked for, validated, corrected once, and refused in words without values."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import anyio
import httpx2
import orjson
import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.models import Message, Turn
from app.services.ports import FinishReason
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel
from tests.support.scripted_tools import (
    ScriptedChatModel,
    ScriptedRunner,
    agent_tools,
    pinned,
)
from tests.support.sse import parse
from tests.support.turns import Gate, abandon, wait_until_settled
from tests.turns.tools.conftest import GiveTools, give_tools, runner

__all__ = ["give_tools", "runner"]
pytestmark = pytest.mark.anyio

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "count": {"type": "integer", "maximum": 9}},
    "required": ["city", "count"],
    "additionalProperties": False,
}
OPEN_SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "minLength": 2}}}
FORMAT = {"type": "json_schema", "name": "place", "schema": SCHEMA}
VALID = '{"city": "Oslo", "count": 3}'
VALUE = "7733117733117"  # longer than any group of digits of an id
INVALID = f'{{"city": "Oslo", "count": {VALUE}}}'
FAULT = {"path": "/count", "rule": "maximum: 9"}


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel()


async def send(
    client: httpx2.AsyncClient,
    session_id: str,
    response_format: object = FORMAT,
    **more: Any,
) -> httpx2.Response:
    headers = more.pop("headers", {})
    body: dict[str, Any] = {"session_id": session_id, "content": "Where?", **more}
    if response_format is not None:
        body["response_format"] = response_format
    return await client.post("/messages/text", json=body, headers=headers)


async def count(database: Database, table: type[Any]) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table)) or 0


async def test_answer_has_its_text_and_its_value_everywhere(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [(VALID,), ("Plain.",)]
    reply = (await send(client, session_id)).json()
    plain = (await send(client, session_id, None)).json()

    value = orjson.loads(VALID)
    assert (reply["content"], reply["output"], reply["status"]) == (VALID, value, "completed")
    assert plain["output"] is None
    asked = chat_model.requests[0].response_format
    assert asked is not None
    assert (asked.name, asked.schema, asked.is_strict) == ("place", SCHEMA, True)
    assert chat_model.requests[1].response_format is None
    assert chat_model.requests[1].messages[-2].content == VALID
    turn = (await client.get(f"/turns/{reply['turn_id']}")).json()
    assert turn["message"]["output"] == value
    messages = (await client.get(f"/sessions/{session_id}/messages")).json()
    assert [message["output"] for message in messages] == [None, value, None, None]
    fork = (await client.post(f"/sessions/{session_id}/fork", json={})).json()
    copied = (await client.get(f"/sessions/{fork['id']}/messages")).json()
    assert copied[1]["output"] == value


async def test_agent_has_a_schema_of_its_own_and_a_message_may_ask_for_another(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, chat_model: ScriptedChatModel
) -> None:
    await client.put(f"/agents/{agent_id}", json={"output_schema": OPEN_SCHEMA})
    chat_model.script = [('{"city": "Rome"}',), (VALID,)]

    first = (await send(client, session_id, None)).json()
    second = (await send(client, session_id)).json()

    assert (first["output"], second["output"]) == ({"city": "Rome"}, orjson.loads(VALID))
    formats = [request.response_format for request in chat_model.requests]
    assert [each and (each.name, each.is_strict) for each in formats] == [
        ("answer", False),
        ("place", True),
    ]


async def test_invalid_answer_is_asked_for_once_more_with_what_is_wrong(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [(INVALID,), (VALID,), ("Later.",)]

    reply = (await send(client, session_id)).json()

    assert (reply["content"], reply["status"]) == (VALID, "completed")
    assert reply["usage"]["prompt_tokens"] == 20
    assert reply["usage"]["completion_tokens"] == 10
    *_, question, rejected, correction = chat_model.requests[1].messages
    assert (question.content, rejected.role, rejected.content) == ("Where?", "assistant", INVALID)
    assert correction.role == "user"
    assert "/count: maximum: 9" in correction.content
    assert VALUE not in correction.content
    await send(client, session_id, None)
    assert [line.content for line in chat_model.requests[2].messages[-3:]] == [
        "Where?", VALID, "Where?",
    ]  # fmt: skip


async def test_second_invalid_answer_fails_with_places_and_rules_and_keeps_the_text(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel, database: Database
) -> None:
    chat_model.script = [("No JSON.",), (INVALID,)]
    headers = {"Idempotency-Key": "k1"}

    failed = await send(client, session_id, headers=headers)
    again = await send(client, session_id, headers=headers)

    problem = failed.json()
    assert (failed.status_code, problem["code"]) == (502, "output-invalid")
    assert problem["errors"] == [FAULT]
    assert VALUE not in failed.text
    assert "/count" in problem["detail"]
    assert len(chat_model.requests) == 2
    turn = (await client.get(f"/turns/{problem['turn_id']}")).json()
    assert (turn["status"], turn["error"]["code"]) == ("failed", "output-invalid")
    assert (turn["message"]["content"], turn["message"]["output"]) == (INVALID, None)
    assert turn["usage"]["completion_tokens"] == 10
    assert (again.status_code, again.json()["errors"]) == (502, [FAULT])
    assert await count(database, Turn) == 1


@pytest.mark.parametrize(
    ("reason", "rule"),
    [
        (FinishReason.LENGTH, "the answer ends within max_output_tokens"),
        (FinishReason.CONTENT_FILTER, "the model answers, and no filter ends its answer"),
    ],
)
async def test_answer_that_was_cut_off_is_not_asked_for_again(
    client: httpx2.AsyncClient, session_id: str, state: State, reason: FinishReason, rule: str
) -> None:
    model = FakeChatModel()
    model.answer, model.finish_reason = '{"city": "Os', reason
    _use(state, model)

    failed = await send(client, session_id)

    assert failed.json()["code"] == "output-invalid"
    assert failed.json()["errors"][0] == {"path": "", "rule": rule}
    assert len(model.requests) == 1


async def test_whole_json_at_the_limit_is_not_truncated(
    client: httpx2.AsyncClient, session_id: str, state: State
) -> None:
    model = FakeChatModel()
    model.answer, model.finish_reason = VALID, FinishReason.LENGTH
    _use(state, model)

    reply = (await send(client, session_id)).json()

    assert (reply["status"], reply["output"]["city"]) == ("completed", "Oslo")


def _use(state: State, model: FakeChatModel) -> None:
    engine: Any = state["turns"]
    engine._runtime = replace(engine._runtime, chat_model=model)  # noqa: SLF001


@pytest.mark.parametrize(
    "answer",
    ["[" * 5000, '{"city": "\\ud800", "count": 1}', "NaN", "```json\n{}\n```", '{"city":' * 150],
)
async def test_hostile_answers_are_invalid_and_harm_nothing(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel, answer: str
) -> None:
    chat_model.script = [(answer,), (VALID,)]
    assert (await send(client, session_id)).json()["output"]["city"] == "Oslo"


async def test_nul_and_deep_values_are_stored_or_refused(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel
) -> None:
    anything = FORMAT | {"schema": {"type": "object"}}
    deep = '{"a":' * 200 + "1" + "}" * 200
    chat_model.script = [('{"a": "x\\u0000y"}',), (deep,), (deep,)]

    assert (await send(client, session_id, anything)).json()["output"] == {"a": "x\x00y"}
    failed = (await send(client, session_id, anything)).json()
    assert failed["errors"] == [{"path": "", "rule": "the answer has at most 100 levels"}]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"schema": {"type": "array"}}, "schema-not-supported", "response_format.schema"),
        ({"schema": {"type": "object", "$ref": "http://x"}}, "schema-not-supported", "$ref"),
        ({"schema": {"type": "object"}, "strict": True}, "schema-not-supported", "strict"),
        ({"name": "no spaces"}, "request-invalid", "name"),
        ({"type": "text"}, "request-invalid", "type"),
        ({"speak": "city"}, "request-invalid", "speak"),
        ({"schema": []}, "request-invalid", "schema"),
        ({"more": 1}, "request-invalid", "more"),
    ],
)
async def test_wrong_formats_are_refused_before_anything_is_stored(
    client: httpx2.AsyncClient,
    session_id: str,
    database: Database,
    changes: dict[str, Any],
    code: str,
    words: str,
) -> None:
    response = await send(client, session_id, FORMAT | changes)

    assert (response.status_code, response.json()["code"]) == (422, code)
    assert words in response.json()["detail"]
    assert await count(database, Message) == 0


async def test_schema_belongs_to_what_an_idempotency_key_stands_for(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [(VALID,)]
    key = {"Idempotency-Key": "one"}
    first = await send(client, session_id, headers=key)
    same = await send(client, session_id, headers=key)
    other = await send(client, session_id, FORMAT | {"schema": OPEN_SCHEMA}, headers=key)

    assert same.json() == first.json()
    assert same.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")


async def test_stream_begins_the_answer_anew_where_it_was_rejected(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [(INVALID,), (VALID,)]
    stream = await send(client, session_id, headers={"accept": "text/event-stream"})
    events = parse(stream.text.split("\n"))

    kinds = [event.type for event in events]
    assert kinds == [
        "turn.created", "turn.in_progress", "output_text.delta", "turn.in_progress",
        "output_text.delta", "turn.completed",
    ]  # fmt: skip
    assert [event.data["delta"] for event in events if "delta" in event.data] == [INVALID, VALID]
    assert events[-1].data["output"] == orjson.loads(VALID)
    assert events[-1].data["message"]["content"] == VALID
    assert events[-1].data["steps"] == 2
    turn_id = events[0].data["turn_id"]
    stored = await client.get(f"/turns/{turn_id}/events")
    assert parse(stored.text.split("\n"))[-1].data["output"] == orjson.loads(VALID)


async def test_tools_run_first_and_the_last_step_is_the_json(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("look_up")))
    chat_model.script = [("Let me see.", ("look_up", "{}")), (INVALID,), (VALID,), ("Ok.",)]

    reply = (await send(client, session_id)).json()

    assert (reply["content"], reply["output"]) == (VALID, orjson.loads(VALID))
    assert [part["type"] for part in reply["parts"]] == ["text", "tool_call", "text"]
    assert reply["parts"][-1]["text"] == VALID
    assert reply["usage"]["completion_tokens"] == 15
    assert all(request.response_format for request in chat_model.requests)
    assert [request.may_call_tools for request in chat_model.requests] == [True, True, False]
    assert len(runner.calls) == 1
    await send(client, session_id, None)
    later = [line.content for line in chat_model.requests[-1].messages]
    assert later[-4:] == ["Let me see.", "result of look_up", VALID, "Where?"]


async def test_turn_that_is_taken_over_has_the_same_schema(
    session_id: str,
    database: Database,
    second_server: StartServer,
    client: httpx2.AsyncClient,
    chat_model: ScriptedChatModel,
) -> None:
    reordered = {"type": "object", "properties": {"zz": {"type": "string"}, "a": {}}}
    gate = Gate()
    chat_model.script = [("never",)]
    other_model = ScriptedChatModel(('{"zz": 1}',), ('{"zz": "ok"}',))
    turn_ids: list[UUID] = []

    async def hold(number: int) -> None:
        if number == 1:
            await gate()

    chat_model.while_thinking = hold
    async with anyio.create_task_group() as group:
        group.start_soon(send, client, session_id, FORMAT | {"schema": reordered})
        await gate.arrived.wait()
        async with database.reading() as db:
            turn_ids += await db.scalars(select(Turn.id))
        await abandon(database, turn_ids[0])
        async with second_server(chat_model=other_model):
            await wait_until_settled(database)
        gate.opened.set()

    turn = (await client.get(f"/turns/{turn_ids[0]}")).json()
    assert (turn["status"], turn["attempt"]) == ("completed", 2)
    assert turn["message"]["output"] == {"zz": "ok"}
    asked = other_model.requests[0].response_format
    assert asked is not None
    assert [*asked.schema["properties"]] == ["zz", "a"]
