"""A voice turn keeps what a text turn keeps, and its sound besides."""

import base64
import subprocess
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import httpx2
import pytest
from sqlalchemy import func, select, update

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import StoredClip, StoredRecording, Turn, utc_now
from app.services.ports import ProviderRejected, ProviderUnavailable
from app.services.turns import AudioStore
from app.state import Providers, State, build_state
from tests.conftest import StartServer
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.sse import parse
from tests.support.tools import find_tool
from tests.support.turns import Gate, abandon, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

ANSWER = "The first sentence is here. Another one follows it. And this is the third."


async def upload(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, **headers: str
) -> httpx2.Response:
    return await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("x.wav", speech)},
        headers=headers,
    )


async def count(database: Database, table: type[Any]) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table)) or 0


async def test_sound_is_stored_and_heard_again_without_a_provider(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
) -> None:
    chat_model.answer = ANSWER
    key = {"Idempotency-Key": "k"}
    first = await upload(client, session_id, speech, **key)
    said = len(speaker.said)

    again = await upload(client, session_id, speech, **key)
    heard = await client.get(f"/turns/{first.headers['x-turn-id']}/audio")

    assert first.content == again.content == heard.content
    assert heard.headers["content-type"] == "audio/mpeg"
    assert heard.headers["x-transcription"] == again.headers["x-transcription"]
    assert again.headers["idempotent-replayed"] == "true"
    assert len(speaker.said) == said == 3


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-1", 206, slice(0, 2)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=99999999-", 416, None),
        ("bytes=5-1", 416, None),
        ("bytes=-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
async def test_stored_sound_is_served_in_ranges(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    wanted: str,
    status: int,
    part: slice | None,
) -> None:
    whole = await upload(client, session_id, speech)

    ranged = await client.get(
        f"/turns/{whole.headers['x-turn-id']}/audio", headers={"Range": wanted}
    )

    assert ranged.status_code == status
    if part is None:
        assert ranged.json()["code"] == "range-not-satisfiable"
        assert ranged.headers["content-range"] == f"bytes */{len(whole.content)}"
    else:
        assert ranged.content == whole.content[part]


async def test_running_turn_is_heard_by_a_second_listener(
    client: httpx2.AsyncClient,
    state: State,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
) -> None:
    chat_model.answer = ANSWER
    gate = Gate()
    speaker.while_speaking = gate
    responses: list[httpx2.Response] = []

    async def send() -> None:
        responses.append(await upload(client, session_id, speech))

    async def listen(turn_id: UUID) -> None:
        responses.append(await client.get(f"/turns/{turn_id}/audio"))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await gate.arrived.wait()
        (turn,) = await turns_of(state, session_id)
        group.start_soon(listen, turn)
        await anyio.sleep(0.05)
        gate.opened.set()

    assert [response.status_code for response in responses] == [200, 200]
    assert responses[0].content == responses[1].content
    assert not state["turns"].is_draining


async def turns_of(state: State, session_id: str) -> list[UUID]:
    async with state["database"].reading() as db:
        query = select(Turn.id).where(Turn.session_id == UUID(session_id)).order_by(Turn.user_seq)
        return list((await db.scalars(query)).all())


async def test_turn_without_stored_sound_is_404(
    client: httpx2.AsyncClient, database: Database, session_id: str, speech: bytes
) -> None:
    text = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})
    voice = await upload(client, session_id, speech)
    async with database.transaction() as db:
        await db.execute(update(StoredClip).values(created_at=utc_now() - timedelta(days=8)))
    await database.run(AudioStore(kept_days=7).prune)

    for turn_id in (text.json()["turn_id"], voice.headers["x-turn-id"]):
        response = await client.get(f"/turns/{turn_id}/audio")
        assert response.status_code == 404
        assert response.json()["code"] == "audio-not-stored"


async def test_without_retention_nothing_is_kept_after_the_turn(
    settings: Settings,
    database: Database,
    providers: Providers,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
    speech: bytes,
) -> None:
    gate = Gate()
    transcriber.while_hearing = gate
    settings = settings.model_copy(update={"audio_retention_days": 0})
    async with (
        build_state(settings, database, providers) as state,
        client_of(settings, state) as client,
    ):
        agent = (await client.post("/agents", json={"name": "Ada"})).json()["id"]
        session_id = (await client.post("/sessions", json={"agent_id": agent})).json()["id"]
        responses: list[httpx2.Response] = []

        async def send() -> None:
            responses.append(await upload(client, session_id, speech, **{"Idempotency-Key": "k"}))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await gate.arrived.wait()
            assert await count(database, StoredRecording) == 1
            gate.opened.set()

        turn_id = responses[0].headers["x-turn-id"]
        assert await count(database, StoredRecording) == 0
        assert (await client.get(f"/turns/{turn_id}/audio")).status_code == 404
        spoken = len(speaker.said)
        again = await upload(client, session_id, speech, **{"Idempotency-Key": "k"})
        assert again.status_code == 410
        assert again.json()["code"] == "audio-not-kept"
        assert again.json()["content"] == "Hello there!"
        assert again.json()["transcription"] == transcriber.text
        assert len(speaker.said) == spoken
        cut = await client.post(f"/turns/{turn_id}/cancel", json={"played_ms": 0})
        assert cut.json()["message"]["heard_content"] == ""


async def test_voice_turn_of_a_dead_server_is_run_again_from_its_recording(
    second_server: StartServer,
    settings: Settings,
    state: State,
    client: httpx2.AsyncClient,
    database: Database,
    transcriber: FakeTranscriber,
    session_id: str,
    speech: bytes,
) -> None:
    gate = Gate()
    transcriber.while_hearing = gate
    hearing = FakeTranscriber()
    turn: dict[str, Any] = {}
    heard: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(upload, client, session_id, speech)
        await gate.arrived.wait()
        (turn_id,) = await turns_of(state, session_id)
        await abandon(database, turn_id)

        async with (
            second_server(transcriber=hearing) as other,
            client_of(settings, other) as there,
        ):
            await wait_until_settled(database)
            turn |= (await there.get(f"/turns/{turn_id}")).json()
            heard.append((await there.get(f"/turns/{turn_id}/audio")).status_code)
        group.cancel_scope.cancel()
    gate.opened.set()

    assert turn["status"] == "completed"
    assert turn["attempt"] == 2
    assert turn["message"]["content"] == "Hello there!"
    assert hearing.recordings[0].data == speech
    assert heard == [200]


async def test_upload_that_failed_retryably_is_run_again_as_the_same_turn(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    speech: bytes,
    transcriber: FakeTranscriber,
) -> None:
    async def be_away() -> None:
        raise ProviderUnavailable("Not now.", retry_after_seconds=99)

    transcriber.while_hearing = be_away
    failed = await upload(client, session_id, speech, **{"Idempotency-Key": "k"})
    transcriber.while_hearing = None
    answered = await upload(client, session_id, speech, **{"Idempotency-Key": "k"})

    assert failed.status_code == 503
    assert answered.status_code == 200
    assert answered.headers["x-turn-id"] == failed.json()["turn_id"]
    assert await count(database, StoredRecording) == 1
    history = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert [(m["content"], m["status"]) for m in history] == [
        ("What time is it?", "completed"),
        ("Hello there!", "completed"),
    ]


async def test_failed_speech_is_a_problem_document_and_keeps_the_words(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, speaker: FakeSpeaker
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("No such voice.")

    speaker.while_speaking = refuse

    response = await upload(client, session_id, speech)

    assert response.status_code == 502
    assert response.headers["content-type"] == "application/problem+json"
    turn = (await client.get(f"/turns/{response.json()['turn_id']}")).json()
    assert turn["status"] == "failed"
    assert turn["message"]["content"] == "Hello there!"
    assert turn["message"]["status"] == "completed"


async def test_cancelled_turn_stops_speaking_and_keeps_what_was_heard(
    client: httpx2.AsyncClient,
    state: State,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
) -> None:
    chat_model.answer = ANSWER
    gate = Gate()

    async def hold_the_second() -> None:
        if len(speaker.said) > 1:
            await gate()

    speaker.while_speaking = hold_the_second
    cancelled: dict[str, Any] = {}
    async with anyio.create_task_group() as group:
        group.start_soon(upload, client, session_id, speech)
        await gate.arrived.wait()
        (turn_id,) = await turns_of(state, session_id)
        live = await state["turns"].find(ADMIN, turn_id)
        await until(lambda: "".join(live.progress.text) == ANSWER)
        response = await client.post(f"/turns/{turn_id}/cancel", json={"played_ms": 300})
        cancelled |= response.json()
    speaker.while_speaking = None
    await client.post("/messages/text", json={"session_id": session_id, "content": "Go on."})

    assert cancelled["status"] == "cancelled"
    assert cancelled["message"]["content"] == ANSWER
    assert cancelled["message"]["heard_content"] == "The first"
    assert cancelled["usage"]["speech_out_characters"] == len(ANSWER) - 2
    assert chat_model.prompts[-1][-2:] == [("assistant", "The first"), ("user", "Go on.")]


async def test_settled_answer_is_cut_to_what_was_heard_of_it(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, chat_model: FakeChatModel
) -> None:
    chat_model.answer = ANSWER
    turn_id = (await upload(client, session_id, speech)).headers["x-turn-id"]
    first_ms = 20 * len("The first sentence is here.")

    heard = {
        played_ms: (
            await client.post(f"/turns/{turn_id}/cancel", json={"played_ms": played_ms})
        ).json()["message"]["heard_content"]
        for played_ms in (0, first_ms - 1, first_ms, first_ms + 200, 60_000)
    }

    assert heard == {
        0: "",
        first_ms - 1: "The first sentence is",
        first_ms: "The first sentence is here.",
        first_ms + 200: "The first sentence is here. Another",
        60_000: None,
    }


@pytest.mark.parametrize("body", ['{"played_ms": -1}', '{"played_ms": "x"}', '{"x": 1}', "[", "1"])
async def test_wrong_interruption_is_refused(
    client: httpx2.AsyncClient, session_id: str, body: str
) -> None:
    sent = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    response = await client.post(
        f"/turns/{sent.json()['turn_id']}/cancel",
        content=body,
        headers={"Content-Type": "application/json"},
    )

    assert response.status_code in {400, 422}


async def test_timings_and_usage_are_in_the_turn_and_the_headers(
    client: httpx2.AsyncClient, session_id: str, speech: bytes
) -> None:
    response = await upload(client, session_id, speech)

    turn = (await client.get(f"/turns/{response.headers['x-turn-id']}")).json()
    names = ["stt_ms", "first_token_ms", "first_sentence_ms", "first_audio_ms", "total_ms"]
    assert list(turn["timings"]) == names or sorted(turn["timings"]) == sorted(names)
    values = [turn["timings"][name] for name in names]
    assert values == sorted(values)
    assert turn["usage"]["speech_in_seconds"] == pytest.approx(3.4, abs=1)
    assert turn["usage"]["speech_out_characters"] == len("Hello there!")
    told = [entry.partition(";")[0] for entry in response.headers["server-timing"].split(", ")]
    assert told[:4] == ["stt", "first_token", "first_sentence", "first_audio"]


async def test_export_has_the_sound_where_it_is_wanted(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, chat_model: FakeChatModel
) -> None:
    chat_model.answer = ANSWER
    spoken = await upload(client, session_id, speech)

    plain = (await client.get(f"/sessions/{session_id}/export")).json()
    (sound,) = (await client.get(f"/sessions/{session_id}/export?audio=true")).json()["audio"]

    assert plain["audio"] == []
    assert sound["turn_id"] == spoken.headers["x-turn-id"]
    assert base64.b64decode(sound["mp3"]) == spoken.content
    assert base64.b64decode(sound["recording"]["data"]) == speech
    assert sound["recording"]["format"] == "wav"
    assert [clip["text"] for clip in sound["clips"]] == [
        "The first sentence is here.",
        "Another one follows it.",
        "And this is the third.",
    ]


async def test_sound_goes_with_its_session(
    client: httpx2.AsyncClient, database: Database, session_id: str, speech: bytes
) -> None:
    await upload(client, session_id, speech)
    assert await count(database, StoredClip) == await count(database, StoredRecording) == 1

    await client.delete(f"/sessions/{session_id}")

    assert await count(database, StoredClip) == await count(database, StoredRecording) == 0


async def test_clips_of_events_add_up_to_the_samples(
    client: httpx2.AsyncClient, session_id: str, speech: bytes, chat_model: FakeChatModel
) -> None:
    chat_model.answer = ANSWER

    streamed = await upload(client, session_id, speech, accept="text/event-stream")

    clips = [e.data for e in parse(streamed.text.splitlines()) if e.type == "audio.clip"]
    assert [clip["start_ms"] for clip in clips] == [0, 540, 1000]
    assert sum(clip["duration_ms"] for clip in clips) == 20 * (len(ANSWER) - 2)
    # What is stored is one stream, not the clips.
    created = parse(streamed.text.splitlines())[0].data["turn_id"]
    heard = await client.get(f"/turns/{created}/audio")
    assert heard.status_code == 200
    assert heard.content != b"".join(base64.b64decode(clip["mp3"]) for clip in clips)


async def test_caller_without_the_turn_hears_nothing(state: State) -> None:
    from app.services.crud import TurnNotFound

    with pytest.raises(TurnNotFound):
        await state["voice"].find_answer(ADMIN, UUID(int=7))


async def test_ten_sentences_decode_to_the_sum_of_their_sound(
    client: httpx2.AsyncClient,
    session_id: str,
    speech: bytes,
    chat_model: FakeChatModel,
    speaker: FakeSpeaker,
) -> None:
    ffmpeg = find_tool("ffmpeg")
    names = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    chat_model.answer = " ".join(f"{name} sentences are spoken now." for name in names)

    response = await upload(client, session_id, speech)

    assert len(speaker.said) == len(names)
    ran = subprocess.run(  # noqa: ASYNC221  # a moment
        [ffmpeg, "-v", "error", "-f", "mp3", "-i", "pipe:", "-f", "s16le", "pipe:"],
        input=response.content,
        capture_output=True,
        check=True,
    )
    assert ran.stderr == b""
    spoken_samples = sum(len(text) for text, _ in speaker.said) * 24_000 // 50
    delay_samples = 576 + 529 + 2 * 576  # of the encoder and decoder, and whole frames
    assert 0 <= len(ran.stdout) // 2 - spoken_samples <= delay_samples
