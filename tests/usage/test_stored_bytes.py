"""The storage limit counts all that a client can make a workspace store, and refuses more."""

import secrets
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import inspect, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import (
    Agent,
    CallStatus,
    IdempotencyKey,
    Message,
    Session,
    StoredSecret,
    ToolCall,
    Turn,
    TurnStatus,
    TurnStep,
    new_id,
)
from app.models.base import Base
from app.services.usage.storage import COUNTED, MEGABYTE, ROW_BYTES, StorageMeter, size_of
from app.state import Providers, State, build_state
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.turns.test_voice_turns import upload

pytestmark = pytest.mark.anyio

WORKSPACE = ADMIN.workspace_id
OF_FEW_ROWS = {
    "Budget": "one row for each key and end user",
    "RequestWindow": "one row for each key and end user",
    "SessionToken": "pruned minutes later, when it is expired",
    "ClientSecret": "pruned when the next is made, once it is expired",
    "ConsoleSession": "pruned hours later, when it is expired",
}
"""Tables that are not counted, and why they stay small."""


def filler(count: int = 20_000) -> str:
    """Return text that no database compresses."""
    return secrets.token_hex(count // 2)


async def used_bytes(database: Database) -> int:
    """Measure anew."""
    async with database.reading() as db:
        return await StorageMeter(database, MEGABYTE).used_bytes(WORKSPACE, db)


@pytest.fixture
async def full(
    settings: Settings, database: Database, providers: Providers
) -> AsyncGenerator[tuple[State, httpx2.AsyncClient]]:
    """A server whose workspaces may store 1 MB."""
    limited = settings.model_copy(update={"limit_stored_mb_per_workspace": 1})
    async with (
        build_state(limited, database, providers) as state,
        client_of(limited, state) as client,
    ):
        yield state, client


def test_every_table_of_a_workspace_is_counted_or_stays_small() -> None:
    tables = {
        mapper.class_ for mapper in Base.registry.mappers if "workspace_id" in mapper.local_table.c
    }

    assert {table.__name__ for table in tables - {*COUNTED}} == set(OF_FEW_ROWS)


async def test_texts_of_tool_calls_and_stored_responses_are_counted(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    body = {"session_id": session_id, "content": "Hi"}
    reply = (await client.post("/messages/text", json=body)).json()
    turn = {"workspace_id": WORKSPACE, "turn_id": UUID(reply["turn_id"])}
    before = await used_bytes(database)
    rows = (
        TurnStep(
            **turn, number=1, content=filler(), reasoning=filler(), prompt_tokens=1,
            cached_tokens=0, completion_tokens=1, usage_estimated=False, is_billed=True,
        ),
        ToolCall(
            **turn, session_id=UUID(session_id), step=1, index=0, model_call_id="c", name="t",
            arguments=filler(), status=CallStatus.COMPLETED, result=filler(),
            stored_result=filler(), error_detail=filler(), resolution={"reason": filler()},
        ),
        IdempotencyKey(
            workspace_id=WORKSPACE, key=filler(200), fingerprint=b"0" * 32, status=201,
            body=filler().encode(),
        ),
        StoredSecret(
            workspace_id=WORKSPACE, name="s", sealed=filler().encode(), key_id="k", hosts=["a.b"]
        ),
    )  # fmt: skip

    async with database.transaction() as db:
        db.add_all(rows)
    parts = [{"type": "text", "text": filler()}]
    async with database.transaction() as db:
        of_reply = update(Message).where(Message.id == UUID(reply["id"]))
        await db.execute(of_reply.values(parts=parts, heard_content=filler()))

    expected = sum(map(size_of, rows)) + 40_000
    assert await used_bytes(database) - before == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("table", COUNTED)
async def test_size_of_a_row_is_what_a_measure_says(table: type[Base]) -> None:
    values: dict[str, Any] = {
        attribute.key: "x" * 1000
        for attribute in inspect(table).column_attrs
        if attribute.key in {"content", "system_prompt", "arguments", "result", "error_detail"}
    }

    assert size_of(table(**values)) == ROW_BYTES + 1000 * len(values)


async def test_rows_without_content_are_counted(
    client: httpx2.AsyncClient, database: Database, agent_id: str
) -> None:
    before = await used_bytes(database)

    for _ in range(20):
        assert (await client.post("/sessions", json={"agent_id": agent_id})).is_success

    assert await used_bytes(database) - before >= 20 * ROW_BYTES


async def test_full_workspace_refuses_whatever_stores_more(
    full: tuple[State, httpx2.AsyncClient], database: Database
) -> None:
    state, client = full
    prompt = {"name": "A", "system_prompt": "y" * 100_000}
    agent_id = (await client.post("/agents", json=prompt)).json()["id"]
    session_id = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
    await client.put(f"/agents/{agent_id}", json={"system_prompt": "z"})
    tool: dict[str, Any] = {
        "name": "t", "description": "d", "kind": "client",
        "parameters": {"type": "object", "properties": {}},
    }  # fmt: skip
    made = await client.post("/tools", json=tool)
    assert made.status_code == 201, made.text
    tool_id = made.json()["id"]
    await client.put(f"/agents/{agent_id}", json={"tools": [{"tool_id": tool_id}]})
    async with database.reading() as db:
        used = await state["storage"].used_bytes(WORKSPACE, db)
    state["storage"].add(WORKSPACE, MEGABYTE - used - ROW_BYTES // 2)

    refused = {
        "agent": await client.post("/agents", json={"name": "B"}),
        "version": await client.put(f"/agents/{agent_id}", json={"name": "B"}),
        "restored": await client.post(f"/agents/{agent_id}/versions/1/restore"),
        "session": await client.post("/sessions", json={"agent_id": agent_id}),
        "metadata": await client.patch(
            f"/sessions/{session_id}", json={"metadata": {"a": "x" * 1000}}
        ),
        "fork": await client.post(f"/sessions/{session_id}/fork", json={}),
        "message": await client.post(
            "/messages/text", json={"session_id": session_id, "content": "Hi"}
        ),
        "tool": await client.post("/tools", json=tool | {"name": "u"}),
        "tool version": await client.put(f"/tools/{tool_id}", json={"description": "other"}),
        "secret": await client.post(
            "/secrets", json={"name": "s", "value": "a long value", "hosts": ["a.example"]}
        ),
        "key": await client.post("/keys", json={"name": "k", "scopes": ["sessions:read"]}),
    }

    codes = {what: (each.status_code, each.json()["code"]) for what, each in refused.items()}
    assert codes == dict.fromkeys(refused, (429, "storage-full"))
    smaller = await client.patch(f"/sessions/{session_id}", json={"metadata": {}, "title": "T"})
    unchanged = await client.put(f"/agents/{agent_id}", json={"system_prompt": "z"})
    assert smaller.is_success
    assert unchanged.is_success
    assert (await client.get(f"/sessions/{session_id}/export")).is_success
    assert (await client.delete(f"/sessions/{session_id}")).is_success
    async with database.reading() as db:
        stored = await db.get_one(Agent, (WORKSPACE, UUID(agent_id)))
    assert (stored.name, stored.system_prompt) == ("A", "z")


async def test_output_for_a_tool_call_is_refused_where_there_is_no_room(
    full: tuple[State, httpx2.AsyncClient], database: Database
) -> None:
    state, client = full
    agent_id = (await client.post("/agents", json={"name": "A"})).json()["id"]
    session_id = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
    body = {"session_id": session_id, "content": "Hi"}
    turn_id = UUID((await client.post("/messages/text", json=body)).json()["turn_id"])
    call = ToolCall(
        workspace_id=WORKSPACE, id=new_id(), turn_id=turn_id, session_id=UUID(session_id), step=1,
        index=0, model_call_id="c", name="t", arguments="{}", status=CallStatus.AWAITING_OUTPUT,
    )  # fmt: skip
    async with database.transaction() as db:
        db.add(call)
        waiting = update(Turn).where(Turn.id == turn_id)
        await db.execute(waiting.values(status=TurnStatus.REQUIRES_ACTION, ended_at=None))
    async with database.reading() as db:
        used = await state["storage"].used_bytes(WORKSPACE, db)
    state["storage"].add(WORKSPACE, MEGABYTE - used - 1000)
    resolution = f"/tool-calls/{call.id}/resolution"

    refused = await client.post(resolution, json={"output": "x" * 2000})
    taken = await client.post(resolution, json={"output": "x"})

    assert (refused.status_code, refused.json()["code"]) == (429, "storage-full")
    assert taken.status_code == 200, taken.text
    async with database.reading() as db:
        assert await db.get(Session, (WORKSPACE, UUID(session_id)))


async def test_answers_and_their_sound_are_counted_before_the_next_measure(
    full: tuple[State, httpx2.AsyncClient],
    database: Database,
    chat_model: FakeChatModel,
    speech: bytes,
) -> None:
    state, client = full
    agent_id = (await client.post("/agents", json={"name": "A"})).json()["id"]
    session_id = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
    async with database.reading() as db:
        before = await state["storage"].used_bytes(WORKSPACE, db)
    chat_model.answer = "x" * 12_000
    body = {"session_id": session_id, "content": "Hi"}
    assert (await client.post("/messages/text", json=body)).is_success
    async with database.reading() as db:
        written = await state["storage"].used_bytes(WORKSPACE, db)
    chat_model.answer = "Here is a short one."
    spoken = await upload(client, session_id, speech)
    async with database.reading() as db:
        after = await state["storage"].used_bytes(WORKSPACE, db)

    assert written - before >= 24_000
    assert after - written >= len(spoken.content) + len(speech)
