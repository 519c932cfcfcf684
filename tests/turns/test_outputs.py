"""`output`: a written message may be answered with speech, and a recording with text."""

import base64
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import func, select

from app.core.config import Settings
from app.core.database import Database
from app.models import Message, StoredClip, StoredRecording, Turn
from app.services.ports import ProviderRejected, ProviderUnavailable
from app.state import Providers, State, build_state
from tests.conftest import StartServer
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.sse import parse
from tests.support.turns import Gate, abandon, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

ANSWER = "The first sentence is here. Another one follows it. And this is the third."
EVENTS = {"Accept": "text/event-stream"}

Send = Callable[..., Awaitable[httpx2.Response]]


async def say(
    client: httpx2.AsyncClient, session_id: str, headers: dict[str, str] | None = None, **more: Any
) -> httpx2.Response:
    """Send a written message whose answer is spoken."""
    body = {"session_id": session_id, "content": "Hi", "output": "voice", **more}
    return await client.post("/messages/text", json=body, headers=headers or {})


async def hear(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> httpx2.Response:
    """Send a recording whose answer is written."""
    return await client.post(
        "/messages/voice",
        data={"session_id": session_id, "output": "text", **more},
        files={"audio": ("x.wav", speech)},
        headers=headers or {},
    )


async def count(database: Database, table: type[Any]) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table)) or 0


def assert_last_event_has(message: dict[str, Any], streamed: httpx2.Response) -> None:
    """Compare the message of a stream's last event with the stored one, field by field."""
    shown = parse(streamed.text.splitlines())[-1].data["message"]
    shown["created_at"] = datetime.fromisoformat(shown["created_at"])
    stored = message | {"created_at": datetime.fromisoformat(message["created_at"])}
    assert shown == {name: stored[name] for name in shown}
    assert "heard_content" in shown


async def last_turn(database: Database) -> UUID:
    async with database.reading() as db:
        return (await db.scalars(select(Turn.id).order_by(Turn.user_seq.desc()).limit(1))).one()


async def test_written_message_is_answered_with_speech(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    chat_model: FakeChatModel,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
) -> None:
    chat_model.answer = ANSWER

    spoken = await say(client, session_id)

    assert spoken.status_code == 200
    assert spoken.headers["content-type"] == "audio/mpeg"
    assert spoken.content[0] == 0xFF
    assert "x-transcription" not in spoken.headers
    assert spoken.headers["x-session-id"] == session_id
    assert [text for text, _ in speaker.said] == [
        "The first sentence is here.", "Another one follows it.", "And this is the third."
    ]  # fmt: skip
    assert not transcriber.recordings
    assert await count(database, StoredRecording) == 0
    assert await count(database, StoredClip) == 3
    turn = (await client.get(f"/turns/{spoken.headers['x-turn-id']}")).json()
    assert (turn["status"], turn["modality"]) == ("completed", "text")
    assert turn["usage"]["speech_in_seconds"] is None
    assert turn["usage"]["speech_out_characters"] == len(ANSWER) - 2
    messages = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert [(m["content"], m["modality"]) for m in messages] == [("Hi", "text"), (ANSWER, "voice")]
    heard = await client.get(f"/turns/{turn['id']}/audio")
    part = await client.get(f"/turns/{turn['id']}/audio", headers={"Range": "bytes=0-1"})
    assert heard.content == spoken.content
    assert (part.status_code, part.content) == (206, spoken.content[:2])


@pytest.mark.parametrize("output", ["text", "voice"])
async def test_last_event_has_the_message_as_it_is_stored(
    client: httpx2.AsyncClient, session_id: str, output: str
) -> None:
    streamed = await say(client, session_id, EVENTS, output=output)

    _, answer = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert_last_event_has(answer, streamed)
    replayed = await client.get(f"/turns/{answer['turn_id']}/events")
    assert_last_event_has(answer, replayed)


async def test_written_answer_to_a_recording_is_never_cut_to_what_was_heard(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
) -> None:
    gate = Gate()
    chat_model.answer, chat_model.before_finish = ANSWER, gate
    streamed: list[httpx2.Response] = []
    cancelled: dict[str, Any] = {}

    async def stream() -> None:
        streamed.append(await hear(client, session_id, speech, EVENTS))

    async with anyio.create_task_group() as group:
        group.start_soon(stream)
        await gate.arrived.wait()
        cancel = f"/turns/{await last_turn(database)}/cancel"
        cancelled |= (await client.post(cancel, json={"played_ms": 0})).json()["message"]

    assert (cancelled["content"], cancelled["heard_content"]) == (ANSWER, None)
    assert_last_event_has(cancelled, streamed[0])


async def test_events_of_a_spoken_answer_have_its_sound(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    chat_model.answer = ANSWER

    streamed = await say(client, session_id, EVENTS)

    events = parse(streamed.text.splitlines())
    clips = [event.data for event in events if event.type == "audio.clip"]
    assert [clip["start_ms"] for clip in clips] == [0, 540, 1000]
    assert all(base64.b64decode(clip["mp3"])[0] == 0xFF for clip in clips)
    assert not [event for event in events if event.type.startswith("input_transcript")]
    assert events[-1].type == "turn.completed"
    assert events[-1].data["message"]["modality"] == "voice"
    turn_id = events[0].data["turn_id"]
    again = await client.get(f"/turns/{turn_id}/events")
    assert again.text == streamed.text


async def test_recording_is_answered_with_text(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    speech: bytes,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
) -> None:
    written = await hear(client, session_id, speech)

    reply = written.json()
    assert written.status_code == 200
    assert written.headers["content-type"] == "application/json"
    assert written.headers["x-transcription"] == transcriber.text
    assert (reply["content"], reply["modality"]) == ("Hello there!", "text")
    assert reply["transcription"] == transcriber.text
    assert not speaker.said
    assert await count(database, StoredClip) == 0
    assert await count(database, StoredRecording) == 1
    turn = (await client.get(f"/turns/{reply['turn_id']}")).json()
    assert turn["modality"] == "voice"
    assert turn["usage"]["speech_in_seconds"] > 1
    assert turn["usage"]["speech_out_characters"] is None
    assert "first_audio_ms" not in turn["timings"]
    messages = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert [(m["content"], m["modality"]) for m in messages] == [
        (transcriber.text, "voice"),
        ("Hello there!", "text"),
    ]
    silent = await client.get(f"/turns/{reply['turn_id']}/audio")
    assert (silent.status_code, silent.json()["code"]) == (404, "audio-not-stored")


async def test_events_of_a_written_answer_have_the_transcript_and_no_sound(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
) -> None:
    streamed = await hear(client, session_id, speech, EVENTS)

    events = parse(streamed.text.splitlines())
    (transcript,) = [e.data["text"] for e in events if e.type == "input_transcript.done"]
    words = "".join(e.data["delta"] for e in events if e.type == "output_text.delta")
    assert transcript == transcriber.text
    assert words == "Hello there!"
    assert not [event for event in events if event.type == "audio.clip"]
    assert not speaker.said


async def test_repeated_request_is_answered_alike_and_costs_nothing(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
) -> None:
    spoken = [await say(client, session_id, {"Idempotency-Key": "s"}) for _ in range(2)]
    written = [await hear(client, session_id, speech, {"Idempotency-Key": "w"}) for _ in range(2)]

    assert spoken[0].content == spoken[1].content
    assert spoken[0].headers["x-turn-id"] == spoken[1].headers["x-turn-id"]
    assert written[0].json()["id"] == written[1].json()["id"]
    assert written[0].json()["transcription"] == written[1].json()["transcription"]
    for first, again in (spoken, written):
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
    assert len(chat_model.requests) == 2
    assert len(transcriber.recordings) == len(speaker.said) == 1


async def test_output_is_part_of_the_request(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    await say(client, session_id, {"Idempotency-Key": "s"})
    await hear(client, session_id, speech, {"Idempotency-Key": "w"})

    others = [
        await say(client, session_id, {"Idempotency-Key": "s"}, output="text"),
        await hear(client, session_id, speech, {"Idempotency-Key": "w"}, output="voice"),
    ]

    assert [(r.status_code, r.json()["code"]) for r in others] == [
        (422, "idempotency-key-reused")
    ] * 2


@pytest.mark.parametrize("output", ["speech", "VOICE", None, 1])
async def test_unknown_output_is_refused(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, output: str | int | None
) -> None:
    refused = [await say(client, session_id, output=output)]
    if isinstance(output, str):
        refused.append(await hear(client, session_id, speech, output=output))

    assert {response.status_code for response in refused} == {422}
    assert all("output" in response.text for response in refused)
    assert (await client.get(f"/sessions/{session_id}")).json()["messages"] == []


async def test_background_turns_keep_their_output(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    prefer = {"Prefer": "respond-async"}

    spoken = await say(client, session_id, prefer)
    written = await hear(client, session_id, speech, prefer)

    assert (spoken.status_code, written.status_code) == (202, 202)
    for response, output in ((spoken, "voice"), (written, "text")):
        turn = (await client.get(response.headers["location"], params={"wait_seconds": 30})).json()
        sound = await client.get(f"{response.headers['location']}/audio")
        assert (turn["status"], turn["message"]["modality"]) == ("completed", output)
        assert sound.status_code == (200 if output == "voice" else 404)


async def test_turns_taken_over_after_a_crash_keep_their_output(
    second_server: StartServer,
    settings: Settings,
    client: httpx2.AsyncClient,
    database: Database,
    chat_model: FakeChatModel,
    agent_id: str,
    speech: bytes,
) -> None:
    sessions = [
        (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"] for _ in range(2)
    ]
    gate = Gate()
    chat_model.while_thinking = gate
    there_model, there_speaker = FakeChatModel(), FakeSpeaker()
    turns: list[UUID] = []
    events: list[str] = []
    async with anyio.create_task_group() as group:
        for number, send in enumerate((
            lambda: say(client, sessions[0], EVENTS), lambda: hear(client, sessions[1], speech)
        )):  # fmt: skip
            group.start_soon(send)
            await until(lambda arrived=number: gate.waiting > arrived)
        async with database.reading() as db:
            rows = await db.execute(select(Turn.session_id, Turn.id))
            by_session = {str(session): turn for session, turn in rows}
        turns += [by_session[session] for session in sessions]
        for turn_id in turns:
            await abandon(database, turn_id)
        async with (
            second_server(chat_model=there_model, speaker=there_speaker) as other,
            client_of(settings, other) as there,
        ):
            await wait_until_settled(database)
            events += [(await there.get(f"/turns/{turn_id}/events")).text for turn_id in turns]
        group.cancel_scope.cancel()
    gate.opened.set()

    assert len(there_model.requests) == 2
    assert [text for text, _ in there_speaker.said] == ["Hello there!"]
    assert ["event: audio.clip" in text for text in events] == [True, False]
    sound = [await client.get(f"/turns/{turn_id}/audio") for turn_id in turns]
    assert [response.status_code for response in sound] == [200, 404]


async def test_queued_turn_is_spoken_when_its_time_comes(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    responses: list[httpx2.Response] = []

    async def send_spoken() -> None:
        responses.append(await say(client, session_id))

    async with anyio.create_task_group() as group:
        body = {"session_id": session_id, "content": "Hi"}
        await client.post("/messages/text", json=body, headers={"Prefer": "respond-async"})
        await gate.arrived.wait()
        group.start_soon(send_spoken)
        await anyio.wait_all_tasks_blocked()
        gate.opened.set()

    assert responses[0].headers["content-type"] == "audio/mpeg"
    assert responses[0].headers["server-timing"].startswith("queue;dur=")


async def test_failed_speech_keeps_the_words_and_a_retry_speaks_them(
    client: httpx2.AsyncClient, session_id: str, speaker: FakeSpeaker, chat_model: FakeChatModel
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    async def refuse() -> None:
        raise ProviderRejected("No such voice.")

    speaker.while_speaking = be_away
    away = await say(client, session_id, {"Idempotency-Key": "k"})
    speaker.while_speaking = None
    answered = await say(client, session_id, {"Idempotency-Key": "k"})
    speaker.while_speaking = refuse
    refused = await say(client, session_id)

    assert (away.status_code, away.json()["code"]) == (503, "provider-unavailable")
    assert answered.headers["content-type"] == "audio/mpeg"
    assert answered.headers["x-turn-id"] == away.json()["turn_id"]
    assert refused.status_code == 502
    turn = (await client.get(f"/turns/{refused.json()['turn_id']}")).json()
    assert turn["message"]["content"] == chat_model.answer


async def test_interrupted_speech_is_prompted_as_far_as_it_was_heard(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    chat_model.answer = ANSWER
    turn_id = (await say(client, session_id)).headers["x-turn-id"]

    cut = await client.post(f"/turns/{turn_id}/cancel", json={"played_ms": 540})
    await say(client, session_id, output="text")

    assert cut.json()["message"]["heard_content"] == "The first sentence is here."
    assert ("assistant", "The first sentence is here.") in chat_model.prompts[-1]


async def test_sound_that_is_not_kept_is_gone(
    settings: Settings, database: Database, providers: Providers, speaker: FakeSpeaker
) -> None:
    settings = settings.model_copy(update={"audio_retention_days": 0})
    async with (
        build_state(settings, database, providers) as state,
        client_of(settings, state) as client,
    ):
        agent = (await client.post("/agents", json={"name": "Ada"})).json()["id"]
        session = (await client.post("/sessions", json={"agent_id": agent})).json()["id"]
        await say(client, session, {"Idempotency-Key": "k"})
        said = len(speaker.said)

        again = await say(client, session, {"Idempotency-Key": "k"})

    assert again.status_code == 410
    assert again.json()["code"] == "audio-not-kept"
    assert again.json()["content"] == "Hello there!"
    assert "transcription" not in again.json()
    assert len(speaker.said) == said


async def test_export_and_fork_know_which_messages_were_spoken(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    spoken = await say(client, session_id)
    written = await hear(client, session_id, speech)
    await say(client, session_id, output="text")

    export = (await client.get(f"/sessions/{session_id}/export?audio=true")).json()
    fork = (await client.post(f"/sessions/{session_id}/fork", json={})).json()["id"]
    messages = (await client.get(f"/sessions/{fork}")).json()["messages"]

    sound = {audio["turn_id"]: audio for audio in export["audio"]}
    assert set(sound) == {spoken.headers["x-turn-id"], written.json()["turn_id"]}
    assert base64.b64decode(sound[spoken.headers["x-turn-id"]]["mp3"]) == spoken.content
    assert sound[spoken.headers["x-turn-id"]]["recording"] is None
    assert sound[written.json()["turn_id"]]["mp3"] is None
    assert base64.b64decode(sound[written.json()["turn_id"]]["recording"]["data"]) == speech
    assert [message["modality"] for message in messages] == [
        "text", "voice", "voice", "text", "text", "text"
    ]  # fmt: skip


async def test_cancelled_speech_is_stored_as_far_as_it_was_heard(
    client: httpx2.AsyncClient,
    state: State,
    database: Database,
    session_id: str,
    speaker: FakeSpeaker,
) -> None:
    gate = Gate()
    speaker.while_speaking = gate
    cancelled: dict[str, Any] = {}
    streamed: list[httpx2.Response] = []

    async def stream() -> None:
        streamed.append(await say(client, session_id, EVENTS, on_disconnect="cancel"))

    async with anyio.create_task_group() as group:
        group.start_soon(stream)
        await gate.arrived.wait()
        turn_id = await last_turn(database)
        body = {"played_ms": 0}
        cancelled |= (await client.post(f"/turns/{turn_id}/cancel", json=body)).json()
        gate.opened.set()

    assert cancelled["status"] == "cancelled"
    assert cancelled["message"]["heard_content"] == ""
    assert_last_event_has(cancelled["message"], streamed[0])
    assert state["turns"].register_sizes()["turns"] == 0
    async with database.reading() as db:
        assert {m.modality.value for m in await db.scalars(select(Message))} == {"text", "voice"}
