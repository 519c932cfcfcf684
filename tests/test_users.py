"""`DELETE /users/{user_id}`: nothing of an end user stays but sums under another name."""

from contextlib import AsyncExitStack
from urllib.parse import quote
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from app.core.config import Settings
from app.core.database import Database
from app.core.security import DEFAULT_WORKSPACE_ID, Caller, CallerKind
from app.state import State
from tests.conftest import StartServer
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.turns import Gate, reply_to_text, wait_until_settled
from tests.support.waiting import until
from tests.turns.test_voice_turns import upload

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("user_id", ["alice", "user 7", "Ünal%", "a" * 200])
async def test_deleted_user_is_nowhere_and_usage_stays_whole(
    client: httpx2.AsyncClient,
    database: Database,
    state: State,
    agent_id: str,
    speech: bytes,
    user_id: str,
) -> None:
    for owner in (user_id, user_id, "bob"):
        body = {"agent_id": agent_id, "user_id": owner}
        session_id = (await client.post("/sessions", json=body)).json()["id"]
        user = Caller(DEFAULT_WORKSPACE_ID, CallerKind.USER, user_id=owner)
        await reply_to_text(state["turns"], user, UUID(session_id), "Hi")
        await upload(client, session_id, speech)
    before = (await client.get("/usage", params={"group_by": ""})).json()

    deleted = await client.delete(_path(user_id))
    again = await client.delete(_path(user_id))
    after = (await client.get("/usage", params={"group_by": ""})).json()
    by_user = (await client.get("/usage", params={"group_by": "user"})).json()
    left = (await client.get("/sessions")).json()

    receipt = deleted.json()
    assert deleted.status_code == 200, deleted.text
    assert (receipt["sessions"], receipt["turns"], receipt["messages"]) == (2, 4, 8)
    assert receipt["recordings"] == 2
    assert receipt["audio_clips"] >= 2
    assert receipt["usage_records"] == 4
    assert again.status_code == 404
    assert again.json()["code"] == "user-not-found"
    assert before == after
    assert {row["user_id"] for row in by_user} == {"bob", receipt["kept_as"]}
    assert [session["user_id"] for session in left] == ["bob"]
    audited = (await client.get("/audit")).json()[0]
    assert (audited["action"], audited["target_id"]) == ("user.deleted", receipt["kept_as"])
    assert await tables_with(database, user_id) == []


async def test_turns_that_run_end_first_and_keep_no_id(
    client: httpx2.AsyncClient,
    database: Database,
    settings: Settings,
    second_server: StartServer,
    chat_model: FakeChatModel,
    agent_id: str,
) -> None:
    """Two sessions of the user, one of them with a queue; the second runs on another server."""
    gate, elsewhere = Gate(), FakeChatModel()
    chat_model.while_thinking = elsewhere.while_thinking = gate
    body = {"agent_id": agent_id, "user_id": "alice"}
    sessions = [(await client.post("/sessions", json=body)).json()["id"] for _ in range(2)]
    other = (await client.post("/sessions", json=body | {"user_id": "bob"})).json()["id"]
    prefer = {"Prefer": "respond-async"}

    def message(session_id: str) -> dict[str, str]:
        return {"session_id": session_id, "content": "Hi"}

    async with AsyncExitStack() as stack:
        there = client
        if not database.is_sqlite:  # which one process has to itself
            second = await stack.enter_async_context(second_server(chat_model=elsewhere))
            there = await stack.enter_async_context(client_of(settings, second))
        for sender, session_id in (
            (client, sessions[0]), (client, sessions[0]), (there, sessions[1]), (client, other)
        ):  # fmt: skip
            sent = await sender.post("/messages/text", json=message(session_id), headers=prefer)
            assert sent.status_code == 202
        await until(lambda: gate.waiting == 3)

        deleted = await client.delete("/users/alice")

        receipt = deleted.json()
        assert deleted.status_code == 200, deleted.text
        assert (receipt["sessions"], receipt["turns"], receipt["usage_records"]) == (2, 3, 3)
        usage = (await client.get("/usage", params={"group_by": "user"})).json()
        by_user = {row["user_id"]: row["turns"] for row in usage}
        assert by_user == {receipt["kept_as"]: 3, "bob": 1} or by_user == {receipt["kept_as"]: 3}
        assert await tables_with(database, "alice") == []
        gate.opened.set()
        await wait_until_settled(database)
    turns = (await client.get("/turns", params={"session_id": other})).json()
    assert [turn["status"] for turn in turns] == ["completed"]


def _path(user_id: str) -> str:
    return f"/users/{quote(user_id, safe='')}"


async def tables_with(database: Database, words: str) -> list[str]:
    """Return the tables that have these words in any column."""
    if database.is_sqlite:
        names, prefix = "SELECT name FROM sqlite_master WHERE type = 'table'", ""
    else:
        names = "SELECT tablename FROM pg_tables WHERE schemaname = 'agent_platform'"
        prefix = "agent_platform."
    found: list[str] = []
    async with database.connection() as connection:
        for (name,) in (await connection.execute(text(names))).all():
            rows = await connection.execute(text(f'SELECT * FROM {prefix}"{name}"'))  # noqa: S608
            if any(words in str(value) for row in rows for value in row):
                found.append(name)
    return found
