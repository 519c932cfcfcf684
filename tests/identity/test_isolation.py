"""Another workspace's, or another user's, things do not exist, wherever their ids are sent."""

from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlalchemy import text

from app.core.database import Database
from tests.identity.test_matrix import ROWS, ask, is_openai, without_id
from tests.identity.world import ADMIN, SCOPES, Things, World, bearer
from tests.support.fake_providers import FakeChatModel, FakeTranscriber

pytestmark = pytest.mark.anyio

TABLES = (
    "agents", "agent_versions", "sessions", "messages", "turns", "api_keys", "session_tokens",
    "idempotency_keys", "workspaces", "tools", "tool_versions", "agent_tools", "secrets",
    "turn_steps", "tool_calls", "files", "session_files",
)  # fmt: skip
NAMING = [name for name, row in ROWS.items() if "{" in name or row.names_something]


async def everything(database: Database) -> list[Sequence[Any]]:
    schema = "" if database.is_sqlite else "agent_platform."
    async with database.reading() as db:
        return [
            row
            for table in TABLES
            for row in sorted(
                map(repr, (await db.execute(text(f"SELECT * FROM {schema}{table}"))).all())  # noqa: S608
            )
        ]


def is_by_name(name: str) -> bool:
    """Tell whether an endpoint takes any name of a session: one that is not the caller's is new."""
    return name.startswith(("POST /api/chat", "POST /agui/"))


def random_things() -> Things:
    return Things(
        str(uuid4()),
        str(uuid4()),
        str(uuid4()),
        uuid4().hex[:8],
        "K_none",
        str(uuid4()),
        str(uuid4()),
        str(uuid4()),
        str(uuid4()),
        str(uuid4()),
    )


@pytest.mark.parametrize("kind", ["other workspace", "other user", "token of another session"])
async def test_id_of_somebody_else_is_answered_like_a_random_one(
    world: World,
    kind: str,
    speech: bytes,
    database: Database,
    chat_model: FakeChatModel,
    transcriber: FakeTranscriber,
) -> None:
    things, headers = await world.things(), world.callers[kind]
    before, asked = await everything(database), len(chat_model.requests)

    for name in NAMING:
        real = await ask(world, name, headers, things, speech)
        other = random_things()
        if is_by_name(name) and kind != "other workspace":
            other = replace(other, agent_id=things.agent_id)  # the workspace's users share it
        if ROWS[name].hides:
            random = await ask(world, name, headers, other, speech)
            assert (real.status_code, real.content) == (random.status_code, random.content)
            continue
        if real.is_success:  # agents are shared by a workspace's users
            assert kind == "other user"
            assert "agent" in name or "agent_id" in str(ROWS[name].json) or is_openai(name)
            # An agent that they share answers them, in a session of their own.
            asked += name.startswith("POST /v1/") or is_by_name(name)
            continue
        random = await ask(world, name, headers, other, speech)
        assert real.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN}, name
        assert (real.status_code, without_id(real)) == (random.status_code, without_id(random))
        assert real.headers.keys() == random.headers.keys()

    assert len(chat_model.requests) == asked
    assert not transcriber.recordings
    if kind != "other user":  # who may open a session of their own
        assert await everything(database) == before


async def test_lists_show_nothing_of_another_workspace(world: World) -> None:
    things = await world.things()
    stranger = world.callers["other workspace"]

    for path in (
        "/agents",
        "/sessions",
        "/sessions?q=Hi",
        "/keys",
        "/audit",
        "/tools",
        "/secrets",
        "/tool-calls",
    ):
        listed = (await world.client.get(path, headers=stranger)).text
        for thing in vars(things).values():
            assert thing not in listed, path


async def test_list_of_sessions_shows_a_user_only_their_own(world: World) -> None:
    mine, theirs = await world.things(user_id="user-1"), await world.things(user_id="user-2")
    nobodys = await world.things(user_id=None)
    for query in ("", "?q=Hi", "?user_id=user-2", "?q=Hello&user_id=user-1"):
        response = await world.client.get(f"/sessions{query}", headers=world.callers["user"])
        assert theirs.session_id not in response.text
        assert nobodys.session_id not in response.text
        assert ("user_id=user-2" in query) == (mine.session_id not in response.text)


@pytest.mark.parametrize("named", ["other", "random", "nonsense", "\x80"])
async def test_workspace_in_the_header_is_the_admins_to_choose(world: World, named: str) -> None:
    workspace_id = {"other": world.other_workspace_id, "random": str(uuid4())}.get(named, named)
    header = [(b"x-workspace-id", workspace_id.encode("latin-1"))]

    def headers(caller: dict[str, str]) -> list[tuple[bytes, bytes]]:
        return [*((k.encode(), v.encode()) for k, v in caller.items()), *header]

    for kind in ("key", "user", "read-only"):
        refused = await world.client.get("/agents", headers=headers(world.callers[kind]))
        assert refused.status_code == HTTPStatus.NOT_FOUND
        assert refused.json()["code"] == "workspace-not-found"
    admin = await world.client.get("/agents", headers=headers(ADMIN))
    assert admin.status_code == (HTTPStatus.OK if named == "other" else HTTPStatus.NOT_FOUND)


async def test_what_a_user_opens_is_theirs_and_stays_theirs(world: World) -> None:
    things, user = await world.things(), world.callers["user"]
    body = {"agent_id": things.agent_id}

    opened = await world.client.post("/sessions", json=body, headers=user)
    for_another = await world.client.post(
        "/sessions", json=body | {"user_id": "user-2"}, headers=user
    )
    given_away = await world.client.patch(
        f"/sessions/{opened.json()['id']}", json={"user_id": "user-2"}, headers=user
    )
    to_nobody = await world.client.patch(
        f"/sessions/{opened.json()['id']}", json={"user_id": None}, headers=user
    )
    fork = await world.client.post(f"/sessions/{opened.json()['id']}/fork", json={}, headers=user)

    assert opened.json()["user_id"] == "user-1"
    for refused in (for_another, given_away, to_nobody):
        assert refused.status_code == HTTPStatus.FORBIDDEN
    assert fork.json()["user_id"] == "user-1"


async def test_idempotency_keys_of_users_are_apart(world: World) -> None:
    things = await world.things(user_id="user-1")
    body = {"session_id": things.session_id, "content": "Hi"}
    key = {"Idempotency-Key": "the-same"}

    mine = await world.client.post("/messages/text", json=body, headers=world.callers["user"] | key)
    theirs = await world.client.post(
        "/messages/text", json=body, headers=world.callers["other user"] | key
    )
    again = await world.client.post(
        "/messages/text", json=body, headers=world.callers["user"] | key
    )

    assert theirs.status_code == HTTPStatus.NOT_FOUND
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["id"] == mine.json()["id"]


async def test_last_event_id_of_another_turn_opens_nothing(world: World) -> None:
    things = await world.things()
    for kind in ("other workspace", "other user", "token of another session"):
        response: httpx2.Response = await world.client.get(
            f"/turns/{things.turn_id}/events",
            headers=world.callers[kind] | {"Last-Event-ID": "1"},
        )
        assert response.status_code == HTTPStatus.NOT_FOUND
        assert response.json()["code"] == "turn-not-found"


async def test_id_deep_in_metadata_is_only_text(world: World) -> None:
    things = await world.things()
    own_agent = await world.client.post(
        "/agents", json={"name": "Eve"}, headers=world.callers["other workspace"]
    )
    body = {
        "agent_id": own_agent.json()["id"],
        "metadata": {"a": [{"session_id": things.session_id}]},
    }
    made = await world.client.post("/sessions", json=body, headers=world.callers["other workspace"])
    history = await world.client.get(
        f"/sessions/{made.json()['id']}", headers=world.callers["other workspace"]
    )
    assert history.json()["messages"] == []


async def test_token_of_a_deleted_session_opens_nothing(world: World) -> None:
    things = await world.things()
    token = await world.token(things.session_id)
    await world.client.delete(f"/sessions/{things.session_id}", headers=ADMIN)

    response = await world.client.get(f"/sessions/{things.session_id}", headers=token)

    assert response.status_code == HTTPStatus.UNAUTHORIZED


async def test_key_of_one_workspace_does_everything_there_and_nothing_elsewhere(
    world: World,
) -> None:
    key = await world.key(*SCOPES)
    things = await world.things(bearer(key["key"]))

    stranger = await world.client.get(
        f"/keys/{things.key_id}", headers=world.callers["other workspace"]
    )

    assert stranger.status_code == HTTPStatus.NOT_FOUND
