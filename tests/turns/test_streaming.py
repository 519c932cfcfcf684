"""Turn events: complete, in order, ended once, and there again for those who come back."""

import re
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from sqlalchemy import delete, update

from app.core.database import Database
from app.core.security import ADMIN
from app.models import TurnEventBatch, utc_now
from app.services.ports import ProviderRejected
from app.services.turns import TurnEngine, TurnEvent, subscribe
from app.services.turns.errors import EventsPruned, ServerDraining
from app.services.turns.retention import EVENT_RETENTION
from app.services.turns.storage import event_store
from app.state import State
from tests.conftest import StartServer
from tests.support.fake_providers import FakeChatModel
from tests.support.sse import Event, parse, text_of
from tests.support.turns import Gate, abandon, wait_until_settled, wait_until_stored
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

SSE = {"accept": "text/event-stream"}


async def stream(client: httpx2.AsyncClient, session_id: str, content: str = "Hi") -> list[Event]:
    body = {"session_id": session_id, "content": content}
    response = await client.post("/messages/text", json=body, headers=SSE)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return parse(response.text.splitlines())


async def test_stream_tells_the_whole_turn_and_ends_once(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    events = await stream(client, session_id)

    assert [event.id for event in events] == list(range(1, len(events) + 1))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["turn.created", "turn.in_progress"]
    assert set(kinds[2:-1]) == {"output_text.delta"}
    assert kinds[-1] == "turn.completed"
    assert text_of(events) == "Hello there!"
    created, completed = events[0].data, events[-1].data
    assert created["session_id"] == session_id
    assert completed["message"]["id"] == created["message_id"]
    assert completed["message"]["content"] == "Hello there!"
    assert completed["usage"]["prompt_tokens"] == 7
    assert completed["timings"]["total_ms"] >= 0


async def test_failed_turn_ends_with_its_error_and_whether_to_try_again(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("The provider refused.")

    chat_model.while_thinking = refuse

    events = await stream(client, session_id)

    assert events[-1].type == "turn.failed"
    assert events[-1].data["error"]["code"] == "provider-rejected"
    assert events[-1].data["retryable"] is False


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 99, 2**31 - 1])
async def test_events_are_there_again_after_the_end(
    client: httpx2.AsyncClient, session_id: str, after: int
) -> None:
    events = await stream(client, session_id)
    url = f"/turns/{events[0].data['turn_id']}/events"

    by_query = await client.get(url, params={"after": after})
    by_header = await client.get(url, headers={"Last-Event-ID": str(after)})

    again = parse(by_query.text.splitlines())
    assert by_query.text == by_header.text
    assert again == events[after:]
    assert by_query.status_code == by_header.status_code == (200 if again else 204)


async def test_events_that_were_deleted_are_a_problem(
    client: httpx2.AsyncClient, database: Database, session_id: str
) -> None:
    events = await stream(client, session_id)
    async with database.transaction() as db:
        await db.execute(delete(TurnEventBatch))

    response = await client.get(f"/turns/{events[0].data['turn_id']}/events")

    assert response.status_code == 404
    assert response.json()["code"] == "events-pruned"


async def test_events_of_an_unknown_turn_are_404(client: httpx2.AsyncClient) -> None:
    assert (await client.get(f"/turns/{uuid4()}/events")).status_code == 404
    assert (await client.post(f"/turns/{uuid4()}/cancel")).status_code == 404


async def collect(events: AsyncIterator[list[TurnEvent]]) -> list[TurnEvent]:
    return [event async for batch in events for event in batch]


async def test_two_followers_see_the_same_whenever_they_come(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    seen: list[list[TurnEvent]] = []

    async def watch() -> None:
        seen.append(await collect(subscribe(state["turns"], database, turn, 0)))  # pyright: ignore[reportArgumentType]  # a generator

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await gate.arrived.wait()
        gate.opened.set()
        group.start_soon(watch)
    await watch()

    assert seen[0] == seen[1] == seen[2]
    assert [event.number for event in seen[0]] == list(range(1, len(seen[0]) + 1))


async def test_follower_on_another_server_sees_the_same(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    if database.is_sqlite:
        pytest.skip("a SQLite file has one server")
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    there: list[TurnEvent] = []
    async with second_server() as other:
        found = await other["turns"].find(ADMIN, turn.record.id)

        async def watch() -> None:
            async for batch in subscribe(other["turns"], database, found, 0):
                there.extend(batch)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            gate.opened.set()
    here = [
        event async for batch in subscribe(state["turns"], database, turn, 0) for event in batch
    ]

    assert there == here


async def test_stream_of_a_queued_turn_says_so_and_goes_on(
    client: httpx2.AsyncClient, state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    await state["turns"].start(ADMIN, UUID(session_id), "first")
    await gate.arrived.wait()
    events: list[Event] = []

    async def send() -> None:
        events.extend(await stream(client, session_id, "second"))

    async with anyio.create_task_group() as group:
        group.start_soon(send)

        async def both_are_accepted() -> bool:
            return len((await client.get(f"/sessions/{session_id}")).json()["messages"]) == 4

        await until(both_are_accepted)
        gate.opened.set()

    kinds = [event.type for event in events]
    assert kinds[:3] == ["turn.created", "turn.queued", "turn.in_progress"]
    assert kinds[-1] == "turn.completed"
    assert [event.id for event in events] == list(range(1, len(events) + 1))


async def test_running_turn_is_stored_before_it_ends(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()

    await wait_until_stored(turn)
    async with database.reading() as db:
        stored = await event_store.read(db, ADMIN.workspace_id, turn.record.id, 0)
    gate.opened.set()
    await turn.settled.wait()

    assert [event.type.value for event in stored] == ["turn.created", "turn.in_progress"]
    async with database.reading() as db:
        everything = await event_store.read(db, ADMIN.workspace_id, turn.record.id, 0)
    assert everything == turn.log.events


async def test_turn_that_was_taken_over_goes_on_above_what_was_shown(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await wait_until_stored(turn)
    shown = turn.log.next_number - 1
    await abandon(database, turn.record.id)

    async with second_server(chat_model=FakeChatModel()) as other:
        await wait_until_settled(database)
        found = await other["turns"].find(ADMIN, turn.record.id)
        missed = [
            e async for batch in subscribe(other["turns"], database, found, shown) for e in batch
        ]
    gate.opened.set()

    assert missed[0].type.value == "turn.in_progress"
    assert re.fullmatch(rb'\{"at_ms":\d+,"attempt":2\}', missed[0].json)
    assert missed[-1].type.value == "turn.completed"
    numbers = [event.number for event in missed]
    assert numbers == sorted(numbers)


async def test_events_are_pruned_after_their_time(
    state: State, database: Database, session_id: str
) -> None:
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await turn.settled.wait()
    async with database.transaction() as db:
        await db.execute(update(TurnEventBatch).values(created_at=utc_now() - EVENT_RETENTION * 2))
    await database.run(event_store.prune)
    found = await state["turns"].find(ADMIN, turn.record.id)

    with pytest.raises(EventsPruned):
        await anext(subscribe(state["turns"], database, found, 0))
    assert (await state["turns"].result(found)).content == "Hello there!"


async def test_stream_of_a_turn_that_runs_here_goes_on_while_the_server_drains(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    events = subscribe(state["turns"], database, turn, 0)
    await anext(events)

    state["turns"].drain()
    gate.opened.set()

    rest = [event async for batch in events for event in batch]
    assert rest[-1].type.value == "turn.completed"


async def test_stream_of_a_turn_that_does_not_end_in_time_is_told_that_the_server_drains(
    second_server: StartServer, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    engine = TurnEngine(database, chat_model, drain_seconds=0.05)
    async with engine.running():
        turn = await engine.start(ADMIN, UUID(session_id), "Hi")
        await gate.arrived.wait()
        events = subscribe(engine, database, turn, 0)
        await anext(events)
        engine.drain()

        with pytest.raises(ServerDraining):
            await anext(events)
    async with second_server(chat_model=FakeChatModel()):
        await wait_until_settled(database)


async def test_follower_of_a_turn_elsewhere_is_told_at_once_that_the_server_drains(
    state: State, database: Database, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    other = TurnEngine(database, chat_model)
    found = await other.find(ADMIN, turn.record.id)
    other.drain()

    with pytest.raises(ServerDraining):
        await anext(subscribe(other, database, found, turn.log.next_number - 1))
    gate.opened.set()


async def test_cancelled_turn_keeps_its_text_and_says_so(
    client: httpx2.AsyncClient, state: State, chat_model: FakeChatModel, session_id: str
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()

    cancelled = await client.post(f"/turns/{turn.record.id}/cancel")
    again = await client.post(f"/turns/{turn.record.id}/cancel")

    assert cancelled.status_code == again.status_code == 200
    assert cancelled.json()["status"] == "cancelled"
    assert turn.log.events[-1].type.value == "turn.cancelled"


async def test_turn_is_cancelled_from_another_server(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    if database.is_sqlite:
        pytest.skip("a SQLite file has one server")
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()

    async with second_server() as other:
        with anyio.fail_after(60):
            await other["turns"].cancel(ADMIN, turn.record.id)

    assert turn.settled.is_set()
    assert turn.log.events[-1].type.value == "turn.cancelled"


async def test_followers_elsewhere_go_on_when_their_server_takes_the_turn_over(
    second_server: StartServer,
    state: State,
    database: Database,
    chat_model: FakeChatModel,
    session_id: str,
) -> None:
    if database.is_sqlite:
        pytest.skip("a SQLite file has one server")
    gate = Gate()
    chat_model.while_thinking = gate
    turn = await state["turns"].start(ADMIN, UUID(session_id), "Hi")
    await gate.arrived.wait()
    kinds: list[list[str]] = []

    async with second_server(chat_model=FakeChatModel()) as other:

        async def see_to_its_end() -> None:
            live = await other["turns"].find(ADMIN, turn.record.id)
            kinds.append(seen := list[str]())
            async for batch in subscribe(other["turns"], database, live, 0):
                seen.extend(event.type.value for event in batch)

        async def wait_for_its_result() -> None:
            live = await other["turns"].find(ADMIN, turn.record.id)
            assert (await other["turns"].result(live)).content == "Hello there!"

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(see_to_its_end)
                group.start_soon(wait_for_its_result)
                await until(lambda: len(kinds) == 5 and all(kinds))
                state["turns"].drain()  # takes nothing over any more
                await abandon(database, turn.record.id)
        gate.opened.set()

    assert len(kinds) == 5
    assert {sequence[-1] for sequence in kinds} == {"turn.completed"}


async def test_voice_turn_is_streamed_with_transcript_text_and_clips(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    response = await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("question.wav", speech)},
        headers=SSE,
    )

    events = parse(response.text.splitlines())
    kinds = [event.type for event in events]
    assert kinds[0] == "turn.created"
    assert kinds[-1] == "turn.completed"
    heard = next(event for event in events if event.type == "input_transcript.done")
    assert heard.data == {"text": "What time is it?", "language": "en"}
    pieces = [event.data["delta"] for event in events if event.type == "input_transcript.delta"]
    assert "".join(pieces) == "What time is it?"
    clips = [event.data for event in events if event.type == "audio.clip"]
    assert [clip["index"] for clip in clips] == list(range(len(clips)))
    assert clips[0]["start_ms"] == 0
    assert sum(clip["duration_ms"] for clip in clips) > 100
    assert text_of(events) == "Hello there!"
