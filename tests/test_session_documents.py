"""Long sessions: read, exported and forked in pages; how much a workspace stores is limited."""

import json
import tracemalloc
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import insert, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.http.session_stream import export_response, history_response
from app.models import Message, MessageStatus, Modality, Role, Session, new_id
from app.schemas.chat import AgentRead, MessageRead, SessionHistory
from app.schemas.exports import SessionExport
from app.services import crud
from app.state import Providers, build_state
from tests.conftest import client_of
from tests.support.fake_providers import FakeChatModel
from tests.turns.test_voice_turns import upload

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000


async def fill(database: Database, session_id: str, count: int, size: int = 10) -> None:
    """Store `count` messages of `size` characters each."""
    async with database.transaction() as db:
        for seq in range(1, count + 1):
            await db.execute(
                insert(Message).values(
                    workspace_id=ADMIN.workspace_id, id=new_id(), session_id=UUID(session_id),
                    seq=seq, role=(Role.ASSISTANT, Role.USER)[seq % 2], modality=Modality.TEXT,
                    status=MessageStatus.COMPLETED, content=f"{seq} ".ljust(size, "x"),
                )
            )  # fmt: skip
        of_session = update(Session).where(Session.id == UUID(session_id))
        await db.execute(of_session.values(last_seq=count))


@pytest.mark.parametrize("count", [0, 1, 16, 17, 32, 33, 100])
async def test_session_of_any_length_has_the_same_shape(
    client: httpx2.AsyncClient, database: Database, session_id: str, count: int
) -> None:
    await fill(database, session_id, count)

    history = await client.get(f"/sessions/{session_id}")
    export = await client.get(f"/sessions/{session_id}/export")

    SessionHistory.model_validate(history.json())
    SessionExport.model_validate(export.json())
    listed = await client.get(f"/sessions/{session_id}/messages")
    assert history.json()["messages"] == listed.json()
    messages = [MessageRead.model_validate(each) for each in listed.json()]
    assert export.json()["messages"] == [each.model_dump(mode="json") for each in messages]
    assert [each["seq"] for each in listed.json()] == [*range(1, count + 1)]
    assert history.headers["content-type"] == "application/json"


async def test_export_has_turns_and_sound_of_a_long_session(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    for _ in range(3):
        await upload(client, session_id, speech)
        await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    path = f"/sessions/{session_id}/export"
    with_audio = (await client.get(path, params={"audio": "true"})).json()
    without = (await client.get(path)).json()

    assert len(with_audio["turns"]) == 6
    assert len(with_audio["audio"]) == 3
    assert all(each["recording"]["data"] and each["mp3"] for each in with_audio["audio"])
    assert without == with_audio | {"audio": []}


async def test_long_session_takes_the_memory_of_a_page(
    database: Database, agent_id: str, session_id: str
) -> None:
    await fill(database, session_id, 120, MEGABYTE // 4)
    async with database.reading() as db:
        session = await crud.get_session(db, ADMIN, UUID(session_id))
        agent = await crud.get_agent(db, ADMIN.workspace_id, UUID(agent_id))
    responses = (
        history_response(database, ADMIN, session),
        export_response(database, ADMIN, session, AgentRead.model_validate(agent), with_audio=True),
    )

    for response in responses:
        size = 0
        tracemalloc.start()
        async for chunk in response.body_iterator:
            size += len(chunk)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size > 30 * MEGABYTE
        assert peak < 25 * MEGABYTE


async def test_history_that_a_turn_loads_is_bounded_by_bytes(
    settings: Settings,
    database: Database,
    providers: Providers,
    chat_model: FakeChatModel,
    agent_id: str,
    session_id: str,
) -> None:
    unlimited = settings.model_copy(update={"limit_tokens_per_day": 0, "limit_usd_per_day": 0})
    await fill(database, session_id, 20, MEGABYTE)
    async with (
        build_state(unlimited, database, providers) as state,
        client_of(unlimited, state) as client,
    ):
        await client.put(f"/agents/{agent_id}", json={"context_tokens": 10_000_000})
        said = {"session_id": session_id, "content": "Hi"}
        reply = await client.post("/messages/text", json=said)

    assert reply.status_code == 200, reply.text
    sent = [content for role, content in chat_model.prompts[0] if role != "system"]
    assert 3 * MEGABYTE < sum(map(len, sent)) <= 6 * MEGABYTE
    assert sent[-1] == "Hi"
    assert sent[-2].startswith("20 ")


async def test_fork_copies_all_of_a_long_session(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    await fill(database, session_id, 50)

    whole = (await client.post(f"/sessions/{session_id}/fork", json={})).json()
    part = (await client.post(f"/sessions/{session_id}/fork", json={"up_to_seq": 17})).json()

    for fork, count in ((whole, 50), (part, 17)):
        copied = (await client.get(f"/sessions/{fork['id']}")).json()["messages"]
        original = (await client.get(f"/sessions/{session_id}")).json()["messages"][:count]
        assert [each["content"] for each in copied] == [each["content"] for each in original]
        assert {each["id"] for each in copied}.isdisjoint(each["id"] for each in original)


async def test_workspace_stores_no_more_than_its_limit(
    settings: Settings, database: Database, providers: Providers
) -> None:
    limited = settings.model_copy(update={"limit_stored_mb_per_workspace": 2})
    async with (
        build_state(limited, database, providers) as state,
        client_of(limited, state) as client,
    ):
        agent = {"name": "A", "context_tokens": 1_000_000}
        agent_id = (await client.post("/agents", json=agent)).json()["id"]
        session_id = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
        await fill(database, session_id, 4, MEGABYTE // 10)
        forks = [await client.post(f"/sessions/{session_id}/fork", json={}) for _ in range(20)]
        long = {"session_id": session_id, "content": "x" * 190_000}
        messages = [await client.post("/messages/text", json=long) for _ in range(10)]
        prompt = {"system_prompt": "y" * 190_000}
        versions = [await client.put(f"/agents/{agent_id}", json=prompt) for _ in range(10)]
        stored = [
            line
            for line in (await client.get("/usage/budgets")).json()
            if line["resource"] == "stored_mb"
        ]

    assert 2 <= sum(each.is_success for each in forks) <= 5
    for responses in (forks, messages, versions):
        assert responses[-1].status_code == 429
        assert responses[-1].json()["code"] == "storage-full"
    assert stored[0]["limit"] == 2
    assert 1.5 < stored[0]["used"] <= 2
    assert json.dumps(stored)


async def test_another_workspace_has_room_of_its_own(
    settings: Settings, database: Database, providers: Providers
) -> None:
    limited = settings.model_copy(update={"limit_stored_mb_per_workspace": 1})
    async with (
        build_state(limited, database, providers) as state,
        client_of(limited, state) as client,
    ):
        other = (await client.post("/workspaces", json={"name": "other"})).json()["id"]
        agent = {"name": "A", "system_prompt": "y" * 190_000}
        full = [await client.post("/agents", json=agent) for _ in range(10)][-1]
        room = await client.post("/agents", json=agent, headers={"X-Workspace-Id": other})

    assert full.json()["code"] == "storage-full"
    assert room.status_code == 201
