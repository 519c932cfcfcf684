"""The same request twice is done once."""

from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.core.security import ADMIN
from app.models import Agent, Message, Session, Turn, TurnStatus
from app.services.ports import ProviderRejected, ProviderUnavailable
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.sse import parse, text_of
from tests.support.turns import Gate, assert_nothing_stays_registered, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "order-66"}


async def count(database: Database, table: type[Any]) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table)) or 0


async def queued(database: Database) -> list[str]:
    async with database.reading() as db:
        found = await db.scalars(select(Turn.id).where(Turn.status == TurnStatus.QUEUED))
        return list(map(str, found))


async def send(
    client: httpx2.AsyncClient, session_id: str, content: str = "Hi", **headers: str
) -> httpx2.Response:
    body = {"session_id": session_id, "content": content}
    return await client.post("/messages/text", json=body, headers=KEY | headers)


async def test_finished_turn_is_answered_again_without_a_provider(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, database: Database
) -> None:
    first = await send(client, session_id)
    second = await send(client, session_id)

    assert first.json() == second.json()
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(chat_model.requests) == 1
    assert await count(database, Message) == 2


async def test_a_hundred_at_once_make_one_turn_and_equal_answers(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, database: Database
) -> None:
    answers: list[dict[str, Any]] = []

    async def send_one() -> None:
        answers.append((await send(client, session_id)).json())

    async with anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(send_one)

    assert all(answer == answers[0] for answer in answers)
    assert len(chat_model.requests) == 1
    assert await count(database, Turn) == 1


async def test_running_turn_is_joined_from_its_first_event(
    client: httpx2.AsyncClient,
    session_id: str,
    state: State,
    chat_model: FakeChatModel,
    database: Database,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    streams: list[str] = []

    async def join() -> None:
        streams.append((await send(client, session_id, accept="text/event-stream")).text)

    async with anyio.create_task_group() as group:
        group.start_soon(join)
        await gate.arrived.wait()
        group.start_soon(join)

        async def second_has_joined() -> bool:
            async with database.reading() as db:
                (turn_id,) = await db.scalars(select(Turn.id))
            return (await state["turns"].find(ADMIN, turn_id)).is_replayed

        await until(second_has_joined)
        gate.opened.set()

    assert streams[0] == streams[1]
    assert parse(streams[0].splitlines())[0].type == "turn.created"
    assert len(chat_model.requests) == 1
    assert not state["turns"].is_draining


async def test_turn_that_failed_retryably_is_run_again_as_the_same_turn(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel, database: Database
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    chat_model.while_thinking = be_away
    failed = await send(client, session_id)
    chat_model.while_thinking = None
    answered = await send(client, session_id)

    assert failed.status_code == 503
    assert answered.status_code == 200
    assert answered.json()["turn_id"] == failed.json()["turn_id"]
    assert await count(database, Message) == 2
    turn = (await client.get(f"/turns/{answered.json()['turn_id']}")).json()
    assert turn["attempt"] == 2
    assert turn["error"] is None
    events = await client.get(f"/turns/{turn['id']}/events")
    shown = parse(events.text.splitlines())
    kinds = [event.type for event in shown]
    assert (shown[0].id or 0) > 10_000
    assert kinds.count("turn.created") == 1
    assert "turn.failed" not in kinds
    assert kinds[-1] == "turn.completed"


async def test_client_that_saw_an_attempt_fail_is_shown_all_of_the_next(
    state: State,
    second_server: StartServer,
    client: httpx2.AsyncClient,
    session_id: str,
    chat_model: FakeChatModel,
    database: Database,
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    chat_model.while_thinking = be_away
    seen = parse((await send(client, session_id, accept="text/event-stream")).text.splitlines())
    last, turn_id = seen[-1].id or 0, seen[0].data["turn_id"]
    chat_model.while_thinking = None
    # The session is busy when the turn is sent again, so that it waits, and runs there.
    gate = Gate()
    other_model = FakeChatModel()
    other_model.while_thinking = gate
    again: list[httpx2.Response] = []

    async def send_again() -> None:
        again.append(await send(client, session_id, accept="text/event-stream"))

    async with second_server(chat_model=other_model) as other:
        first = await other["turns"].start(ADMIN, UUID(session_id), "And?")
        await gate.arrived.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(send_again)

            async def waits_in_the_queue() -> bool:
                return turn_id in await queued(database)

            await until(waits_in_the_queue)
            gate.opened.set()
            await first.settled.wait()
    resumed = await client.get(f"/turns/{turn_id}/events", headers={"Last-Event-ID": str(last)})
    await state["turns"].refresh(await state["turns"].find(ADMIN, UUID(turn_id)))

    assert seen[-1].type == "turn.failed"
    events = parse(resumed.text.splitlines())
    assert [e.type for e in events[:3]] == ["turn.created", "turn.queued", "turn.in_progress"]
    assert events[2].data == {"attempt": 2}
    assert text_of(events) == "Hello there!"
    assert events[-1].type == "turn.completed"
    first_number = 10_000 + last + 1
    numbers = [event.id for event in events]
    assert numbers == list(range(first_number, first_number + len(events)))
    assert parse(again[0].text.splitlines()) == events


async def test_waiting_turn_that_another_server_ran_is_not_registered_any_more(
    second_server: StartServer,
    state: State,
    session_id: str,
    database: Database,
) -> None:
    gate = Gate()
    model = FakeChatModel()
    model.while_thinking = gate
    async with second_server(chat_model=model) as other:
        first = await other["turns"].start(ADMIN, UUID(session_id), "First")
        await gate.arrived.wait()
        waiting = await state["turns"].start(
            ADMIN, UUID(session_id), "Waits there, and is run here"
        )
        gate.opened.set()
        await wait_until_settled(database)
        assert first.settled.is_set()
    try:
        await assert_nothing_stays_registered(state["turns"])
    finally:
        await state["turns"].refresh(waiting)


async def test_turn_that_failed_for_good_fails_again_without_a_provider(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("No.")

    chat_model.while_thinking = refuse
    first = await send(client, session_id)
    second = await send(client, session_id)

    assert first.status_code == second.status_code == 502
    assert len(chat_model.requests) == 1


async def test_key_with_another_body_is_refused(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    await send(client, session_id, "Hi")

    other = await send(client, session_id, "Something else")

    assert other.status_code == 422
    assert other.json()["code"] == "idempotency-key-reused"
    assert len(chat_model.requests) == 1


async def test_refused_request_leaves_its_key_free(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    unknown = "00000000-0000-7000-8000-000000000000"
    refused = await client.post(
        "/messages/text", json={"session_id": unknown, "content": "Hi"}, headers=KEY
    )

    assert refused.status_code == 404
    assert (await send(client, session_id)).status_code == 200


@pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256, "é"])
async def test_wrong_key_is_refused(client: httpx2.AsyncClient, session_id: str, key: str) -> None:
    response = await client.post(
        "/messages/text",
        json={"session_id": session_id, "content": "Hi"},
        headers=[(b"idempotency-key", key.encode("latin-1"))],
    )

    assert response.status_code == 422
    assert response.json()["code"] == "idempotency-key-invalid"


async def test_rows_are_made_once(
    client: httpx2.AsyncClient, agent_id: str, database: Database
) -> None:
    responses: list[httpx2.Response] = []

    async def create(path: str, body: dict[str, Any], key: str) -> None:
        responses.append(await client.post(path, json=body, headers={"Idempotency-Key": key}))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(create, "/agents", {"name": "Grace"}, "agent")
            group.start_soon(create, "/sessions", {"agent_id": agent_id}, "session")

    assert {response.status_code for response in responses} == {201}
    assert len({response.text for response in responses}) == 2
    assert await count(database, Agent) == 2
    assert await count(database, Session) == 1
    replayed = [r for r in responses if r.headers.get("idempotent-replayed") == "true"]
    assert len(replayed) == 8


async def test_upload_is_heard_once_whatever_its_boundary(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    transcriber: FakeTranscriber,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
) -> None:
    async def upload(data: bytes) -> httpx2.Response:
        return await client.post(
            "/messages/voice",
            data={"session_id": session_id},
            files={"audio": ("x.wav", data)},
            headers=KEY,
        )

    first, second = await upload(speech), await upload(speech)
    other = await upload(speech + bytes(2))

    assert first.status_code == second.status_code == 200
    assert first.headers["x-turn-id"] == second.headers["x-turn-id"]
    assert first.headers["x-transcription"] == second.headers["x-transcription"]
    assert first.content == second.content
    assert len(transcriber.recordings) == len(chat_model.requests) == 1
    assert other.json()["code"] == "idempotency-key-reused"
    assert speaker.said


async def test_busy_session_is_refused_where_the_client_wants_that(
    client: httpx2.AsyncClient, session_id: str, state: State, chat_model: FakeChatModel
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    live = await state["turns"].start(ADMIN, UUID(session_id), "first")
    await gate.arrived.wait()

    body = {"session_id": session_id, "content": "second", "on_busy": "reject"}
    refused = await client.post("/messages/text", json=body)
    gate.opened.set()
    await live.settled.wait()

    assert refused.status_code == 409
    assert refused.json()["code"] == "session-busy"
    assert refused.json()["active_turn_id"] == str(live.record.id)
    assert refused.headers["x-should-retry"] == "false"
    history = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert [message["seq"] for message in history] == [1, 2]


async def test_busy_session_is_interrupted_where_the_client_wants_that(
    client: httpx2.AsyncClient, session_id: str, state: State, chat_model: FakeChatModel
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    live = await state["turns"].start(ADMIN, UUID(session_id), "first")
    await gate.arrived.wait()
    chat_model.while_thinking = None

    body = {"session_id": session_id, "content": "second", "on_busy": "interrupt"}
    answered = await client.post("/messages/text", json=body)

    assert answered.status_code == 200
    assert live.settled.is_set()
    turn = (await client.get(f"/turns/{live.record.id}")).json()
    assert turn["status"] == "cancelled"
