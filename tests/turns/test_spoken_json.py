"""Answers as JSON that are read aloud: the text that `speak` names, once the answer is valid."""

from typing import Any

import httpx2
import orjson
import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.models import Message
from tests.support.fake_providers import FakeSpeaker
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.sse import parse

pytestmark = pytest.mark.anyio

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"say": {"type": "string"}, "code": {"type": "integer"}},
    "required": ["say", "code"],
}
FORMAT = {"type": "json_schema", "name": "spoken", "schema": SCHEMA, "speak": "/say"}
VALID = '{"code": 7, "say": "It is \\"done\\". Have a nice day."}'
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel()


async def say(
    client: httpx2.AsyncClient, session_id: str, response_format: object = None, **headers: str
) -> httpx2.Response:
    body: dict[str, Any] = {"session_id": session_id, "content": "Do it.", "output": "voice"}
    if response_format is not None:
        body["response_format"] = response_format
    return await client.post("/messages/text", json=body, headers=headers)


async def test_text_that_is_named_is_read_aloud_once_the_answer_is_valid(
    client: httpx2.AsyncClient,
    session_id: str,
    chat_model: ScriptedChatModel,
    speaker: FakeSpeaker,
) -> None:
    chat_model.script = [('{"say": "Wrong."}',), (VALID,)]

    response = await say(client, session_id, FORMAT, **EVENTS)

    events = parse(response.text.split("\n"))
    assert [text for text, _ in speaker.said] == ['It is "done".', "Have a nice day."]
    assert [event.data["text"] for event in events if event.type == "audio.clip"] == [
        'It is "done".', "Have a nice day.",
    ]  # fmt: skip
    kinds = [event.type for event in events]
    assert kinds.count("turn.in_progress") == 2
    assert kinds.index("audio.clip") > len(kinds) - 1 - kinds[::-1].index("turn.in_progress")
    assert events[-1].data["output"] == orjson.loads(VALID)


async def test_answer_without_a_text_to_read_aloud_is_refused_before_anything_is_stored(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    database: Database,
    speech: bytes,
) -> None:
    silent = {name: value for name, value in FORMAT.items() if name != "speak"}
    by_message = await say(client, session_id, silent)
    await client.put(f"/agents/{agent_id}", json={"output_schema": SCHEMA})
    by_agent = await say(client, session_id)
    recorded = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )

    for response in (by_message, by_agent, recorded):
        assert (response.status_code, response.json()["code"]) == (422, "speech-not-named")
    async with database.reading() as db:
        assert await db.scalar(select(func.count()).select_from(Message)) == 0


async def test_agent_names_what_is_read_aloud_of_its_answers(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    speaker: FakeSpeaker,
    speech: bytes,
) -> None:
    changes = {"output_schema": SCHEMA, "output_speak": "/say"}
    agent = (await client.put(f"/agents/{agent_id}", json=changes)).json()
    assert agent["output_speak"] == "/say"
    chat_model.script = [(VALID,), (VALID,)]

    spoken = await client.post(
        "/messages/voice", data={"session_id": session_id}, files={"audio": ("x.wav", speech)}
    )
    written = await client.post(
        "/messages/voice",
        data={"session_id": session_id, "output": "text"},
        files={"audio": ("x.wav", speech)},
    )

    assert spoken.headers["content-type"] == "audio/mpeg"
    assert [text for text, _ in speaker.said] == ['It is "done".', "Have a nice day."]
    assert written.json()["output"] == orjson.loads(VALID)


async def test_heard_part_of_an_interrupted_answer_is_of_what_was_read_aloud(
    client: httpx2.AsyncClient,
    session_id: str,
    chat_model: ScriptedChatModel,
) -> None:
    chat_model.script = [(VALID,), ("Ok.",)]
    events = parse((await say(client, session_id, FORMAT, **EVENTS)).text.split("\n"))
    turn_id = events[0].data["turn_id"]
    first = next(event.data for event in events if event.type == "audio.clip")

    cancelled = await client.post(
        f"/turns/{turn_id}/cancel", json={"played_ms": first["duration_ms"] + 1}
    )
    await client.post("/messages/text", json={"session_id": session_id, "content": "Go on"})

    assert cancelled.json()["message"]["heard_content"] == 'It is "done".'
    assert cancelled.json()["message"]["output"] == orjson.loads(VALID)
    assert chat_model.requests[-1].messages[-2].content == 'It is "done".'
