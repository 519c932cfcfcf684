"""What happens in a session is told to those who follow it, on whichever server it happens."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest

from app.core.config import Settings
from app.core.errors import AppError
from app.core.security import ADMIN, Caller, CallerKind
from app.models import Session
from app.services.crud import SessionNotFound
from app.services.turns.errors import ServerDraining
from app.state import State
from tests.conftest import StartServer
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.sse import Event, parse
from tests.support.turns import Gate
from tests.support.waiting import until
from tests.turns.test_retry import fail_a_turn, finished, send

pytestmark = pytest.mark.anyio

A_WHILE = 60.0


class Follower:
    """Notes what it is told of a session, as text: `session 2 A title`, `turn 1 completed 1`."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.error: AppError | None = None
        self.has_ended = anyio.Event()

    async def follow(
        self, there: State, session_id: str, caller: Caller, seconds: float = A_WHILE
    ) -> None:
        try:
            async for news in there["session_events"].follow(caller, UUID(session_id), seconds):
                for each in news:
                    if isinstance(each, Session):
                        self.told.append(f"session {each.last_seq} {each.title}")
                    else:
                        self.told.append(f"turn {each.user_seq} {each.status} {each.attempt}")
        except AppError as error:
            self.error = error
        self.has_ended.set()

    async def hears(self, *told: str) -> None:
        await until(lambda: all(each in self.told for each in told))


@asynccontextmanager
async def following(
    there: State, session_id: str, caller: Caller = ADMIN
) -> AsyncGenerator[Follower]:
    """Follow a session on this server; the block begins when it was told how things are."""
    follower = Follower()
    async with anyio.create_task_group() as group:
        group.start_soon(follower.follow, there, session_id, caller)
        await until(lambda: follower.told or follower.error)
        yield follower
        group.cancel_scope.cancel()
    assert there["session_events"].followed_count == 0


@pytest.fixture
async def other(second_server: StartServer, state: State) -> AsyncIterator[State]:
    """A second server on the same database, where nothing runs."""
    assert not state["turns"].is_draining  # the first is there already
    async with second_server() as other:
        yield other


async def events_of(client: httpx2.AsyncClient, session_id: str, seconds: float) -> list[Event]:
    response = await client.get(f"/sessions/{session_id}/events", params={"seconds": seconds})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text.splitlines())


async def test_stream_begins_with_the_session_and_with_turns_that_have_not_ended(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    ended = (await send(client, session_id, "Hi")).json()["turn_id"]
    gate = chat_model.while_thinking = Gate()
    told: list[Event] = []
    async with anyio.create_task_group() as group:
        group.start_soon(send, client, session_id, "And?")
        await gate.arrived.wait()
        told.extend(await events_of(client, session_id, 0))
        gate.opened.set()
    session, turn = told

    stored = (await client.get(f"/sessions/{session_id}")).json()
    question, answer = stored.pop("messages")[2:]
    assert (session.type, session.id) == ("session.changed", None)
    assert session.data.keys() == stored.keys()
    assert session.data["last_seq"] == 4
    assert turn.type == "turn.changed"
    assert turn.data == {
        "turn_id": answer["turn_id"],
        "user_message_id": question["id"],
        "message_id": answer["id"],
        "user_seq": 3,
        "modality": "text",
        "status": "in_progress",
        "attempt": 1,
    }
    assert answer["turn_id"] != ended


async def test_turns_of_another_server_are_told_as_they_begin_and_end(
    client: httpx2.AsyncClient, session_id: str, other: State, chat_model: FakeChatModel
) -> None:
    async with following(other, session_id) as follower:
        assert follower.told == ["session 0 None"]
        gate = chat_model.while_thinking = Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(send, client, session_id, "Hi")
            await gate.arrived.wait()
            await follower.hears("session 2 None", "turn 1 in_progress 1")
            group.start_soon(send, client, session_id, "And?")
            await follower.hears("session 4 None", "turn 3 queued 1")
            gate.opened.set()
        await follower.hears("turn 1 completed 1", "turn 3 completed 1")

    turns = [each for each in follower.told if each.startswith("turn 1")]
    assert turns == ["turn 1 in_progress 1", "turn 1 completed 1"]


async def test_turn_that_is_over_before_it_is_looked_for_is_told(
    client: httpx2.AsyncClient, session_id: str, other: State
) -> None:
    async with following(other, session_id) as follower:
        for content in ("one", "two", "three"):
            await send(client, session_id, content)
        await follower.hears(*(f"turn {seq} completed 1" for seq in (1, 3, 5)))


async def test_failed_turn_that_is_run_again_is_told_with_its_attempt(
    client: httpx2.AsyncClient, session_id: str, other: State, chat_model: FakeChatModel
) -> None:
    turn_id = await fail_a_turn(client, session_id, chat_model)
    async with following(other, session_id) as follower:
        assert follower.told == ["session 2 None"]
        await client.post(f"/turns/{turn_id}/retry")
        await finished(client, turn_id)
        await send(client, session_id, "Thanks")

        await follower.hears("turn 1 completed 2", "turn 3 completed 1")


async def test_new_title_is_told(client: httpx2.AsyncClient, session_id: str, other: State) -> None:
    async with following(other, session_id) as follower:
        await client.patch(f"/sessions/{session_id}", json={"title": "Orchids"})
        await follower.hears("session 0 Orchids")


async def test_session_that_is_deleted_ends_the_stream(
    client: httpx2.AsyncClient, session_id: str, state: State
) -> None:
    events: list[Event] = []

    async def delete() -> None:
        await until(lambda: state["session_events"].followed_count)
        await client.delete(f"/sessions/{session_id}")

    async with anyio.create_task_group() as group:
        group.start_soon(delete)
        events.extend(await events_of(client, session_id, A_WHILE))

    assert events[-1].type == "error"
    assert events[-1].data["code"] == "session-not-found"


async def test_session_that_is_given_to_somebody_else_is_told_no_more(
    client: httpx2.AsyncClient, agent_id: str, state: State
) -> None:
    body = {"agent_id": agent_id, "user_id": "ann"}
    session_id = (await client.post("/sessions", json=body)).json()["id"]
    ann = Caller(ADMIN.workspace_id, CallerKind.USER, user_id="ann")
    async with following(state, session_id, ann) as follower:
        change = {"user_id": "bob", "title": "Only for Bob"}
        await client.patch(f"/sessions/{session_id}", json=change)
        await follower.has_ended.wait()

    assert follower.told == ["session 0 None"]
    assert isinstance(follower.error, SessionNotFound)


async def test_unknown_session_is_answered_as_a_problem(client: httpx2.AsyncClient) -> None:
    response = await client.get(f"/sessions/{uuid4()}/events")

    assert (response.status_code, response.json()["code"]) == (404, "session-not-found")


@pytest.mark.parametrize("seconds", ["-1", "3601", "soon", "nan"])
async def test_time_that_makes_no_sense_is_refused(
    client: httpx2.AsyncClient, session_id: str, seconds: str
) -> None:
    response = await client.get(f"/sessions/{session_id}/events?seconds={seconds}")

    assert (response.status_code, response.json()["code"]) == (422, "request-invalid")


async def test_key_that_is_revoked_ends_the_stream(
    settings: Settings, state: State, client: httpx2.AsyncClient, session_id: str
) -> None:
    body = {"name": "k", "scopes": ["sessions:read"]}
    made = (await client.post("/keys", json=body)).json()
    key = {"Authorization": f"Bearer {made['key']}"}
    heard: list[httpx2.Response] = []

    async def listen() -> None:
        heard.append(await stranger.get(f"/sessions/{session_id}/events", headers=key))

    async with (
        client_of(settings, state, peer="203.0.113.9") as stranger,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listen)
        await until(lambda: state["session_events"].followed_count)
        await client.delete(f"/keys/{made['id']}")

    events = parse(heard[0].text.splitlines())
    assert [event.type for event in events] == ["session.changed", "error"]
    assert events[-1].data["code"] == "unauthenticated"


async def test_server_that_shuts_down_says_so_at_once(session_id: str, other: State) -> None:
    async with following(other, session_id) as follower:
        other["turns"].drain()
        await follower.has_ended.wait()

    assert isinstance(follower.error, ServerDraining)


async def test_stream_ends_after_its_time_and_nothing_is_polled_without_followers(
    client: httpx2.AsyncClient, session_id: str, state: State
) -> None:
    events = await events_of(client, session_id, 0.5)

    assert [event.type for event in events] == ["session.changed"]
    assert state["session_events"].followed_count == 0
    assert not state["session_events"]._last_states  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
