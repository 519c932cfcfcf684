"""An agent's settings reach the providers as they are stored, wherever its turn runs."""

from dataclasses import fields
from typing import Any, get_type_hints
from uuid import UUID

import httpx2
import pytest

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import PERSONA_FIELDS, AgentVersion
from app.schemas.chat import AgentCreate, AgentUpdate, PersonaRead
from app.services.crud import PersonaChanges
from app.services.turns import Persona
from app.services.turns.records import HistoryMessage
from app.services.turns.storage.tables import PERSONA_COLUMNS
from app.services.turns.storage.turn_statements import HISTORY
from app.state import Providers, State, build_state
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.turns import Gate, abandon, wait_until_settled

pytestmark = pytest.mark.anyio

FIRST: dict[str, Any] = {
    "name": "Ada",
    "system_prompt": "You are Ada.",
    "model": "model-one",
    "temperature": 0.25,
    "max_output_tokens": 77,
    "context_tokens": 4000,
    "voice": "cedar",
    "language": "es",
}
SECOND: dict[str, Any] = {
    "system_prompt": "You are Bea.",
    "model": "model-two",
    "temperature": 0.75,
    "max_output_tokens": 99,
    "context_tokens": 5000,
    "voice": "marin",
    "language": "de",
}


async def session_of(client: httpx2.AsyncClient, persona: dict[str, Any]) -> tuple[str, str]:
    agent = (await client.post("/agents", json=persona)).json()["id"]
    session = (await client.post("/sessions", json={"agent_id": agent})).json()["id"]
    return agent, session


async def speak_to(client: httpx2.AsyncClient, session: str, speech: bytes) -> None:
    form = {"session_id": session}
    response = await client.post("/messages/voice", data=form, files={"audio": ("x.wav", speech)})
    assert response.status_code == 200


def assert_used(
    persona: dict[str, Any], chat: FakeChatModel, hearing: FakeTranscriber, speaker: FakeSpeaker
) -> None:
    request = chat.requests[-1]
    assert request.messages[0].content == persona["system_prompt"]
    assert request.model == persona["model"]
    assert request.temperature == persona["temperature"]
    assert request.max_output_tokens == persona["max_output_tokens"]
    assert hearing.languages[-1] == persona["language"]
    assert speaker.said[-1][1] == persona["voice"]


def test_the_fields_of_an_agent_are_the_same_everywhere() -> None:
    names = set(PERSONA_FIELDS)
    assert len(names) == len(PERSONA_FIELDS)
    assert set(get_type_hints(PersonaChanges)) == names
    assert names <= set(AgentCreate.model_fields)
    assert names <= set(AgentUpdate.model_fields)
    assert names <= set(PersonaRead.model_fields)
    assert {field.name for field in fields(Persona)} == names - {"name"} | {"version"}


def test_persona_columns_are_in_the_order_of_its_fields() -> None:
    assert [column.key for column in PERSONA_COLUMNS] == [field.name for field in fields(Persona)]
    assert {column.table for column in PERSONA_COLUMNS} == {AgentVersion.__table__}  # pyright: ignore[reportAttributeAccessIssue]  # a column of a table


async def test_history_columns_are_in_the_order_of_its_fields(database: Database) -> None:
    sql = HISTORY.compiled(database.engine.dialect).sql
    selected = sql.partition("FROM")[0]
    places = [selected.index(f".{name}") for name in HistoryMessage._fields]
    heard = sql.index("heard_content")

    assert places == sorted(places)
    assert "AS content" in sql[heard:].partition("\n")[0]  # what was heard comes before the text
    assert HistoryMessage._fields == ("seq", "role", "status", "content", "modality", "parts")


async def test_settings_reach_the_providers(
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
    speech: bytes,
) -> None:
    _, session = await session_of(client, FIRST)

    await speak_to(client, session, speech)

    assert_used(FIRST, chat_model, transcriber, speaker)


async def test_settings_of_a_new_version_reach_the_providers(
    client: httpx2.AsyncClient,
    chat_model: FakeChatModel,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
    speech: bytes,
) -> None:
    agent, session = await session_of(client, FIRST)
    await speak_to(client, session, speech)
    assert (await client.put(f"/agents/{agent}", json=SECOND)).status_code == 200

    await speak_to(client, session, speech)

    assert_used(SECOND, chat_model, transcriber, speaker)


async def test_a_turn_that_is_taken_over_keeps_the_version_it_was_accepted_with(
    settings: Settings,
    database: Database,
    client: httpx2.AsyncClient,
    state: State,
    providers: Providers,
    chat_model: FakeChatModel,
) -> None:
    agent, session = await session_of(client, FIRST)
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session), "Hi")
    await gate.arrived.wait()
    await client.put(f"/agents/{agent}", json=SECOND)
    await abandon(database, turn.record.id)

    other = FakeChatModel()
    async with build_state(settings, database, {**providers, "chat_model": other}):
        await wait_until_settled(database)
    gate.opened.set()

    request = other.requests[-1]
    assert request.messages[0].content == FIRST["system_prompt"]
    assert (request.model, request.temperature) == (FIRST["model"], FIRST["temperature"])
    assert request.max_output_tokens == FIRST["max_output_tokens"]
