"""What is said is transcribed in its speaker's first silence, and the turn pays for it."""

from collections.abc import Sequence

import httpx2
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.models import Budget, Message, StoredRecording, Turn
from app.services.ports import ProviderUnavailable
from tests.live.conftest import OpenLine, ask, configure, say, silence
from tests.live.test_connections import bearer, key_of
from tests.support.fake_providers import FakeChatModel, FakeTranscriber
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until
from tests.support.websocket import WebSocket

pytestmark = pytest.mark.anyio

END = silence(800)
"""`spoken` itself ends with 0.4 s of silence: enough to begin, and too little to be the end."""


async def turns_of(database: Database) -> Sequence[Turn]:
    await wait_until_settled(database)
    async with database.reading() as db:
        return (await db.scalars(select(Turn).order_by(Turn.user_seq))).all()


async def say_and_be_heard(line: WebSocket, spoken: bytes, transcriber: FakeTranscriber) -> None:
    """Send `spoken`, and return once its words are known."""
    count = len(transcriber.recordings)
    await say(line, spoken)
    await until(lambda: len(transcriber.recordings) > count)
    await line.send("session.update", session={"type": "realtime"})
    await line.until("session.updated")


async def test_words_are_known_before_the_end_and_asked_for_once(
    open_line: OpenLine, transcriber: FakeTranscriber, spoken: bytes, database: Database
) -> None:
    gate = Gate()
    transcriber.while_hearing = gate
    async with open_line() as line:
        await say_and_be_heard(line, spoken, transcriber)
        assert "input_audio_buffer.speech_stopped" not in line.types
        gate.opened.set()
        await say(line, END)
        done = await line.until("response.done")

    assert done["response"]["status"] == "completed"
    (early,) = transcriber.recordings
    (turn,) = await turns_of(database)
    assert turn.speech_in_seconds == pytest.approx(early.duration_seconds, abs=0.01)
    async with database.reading() as db:
        (stored,) = (await db.scalars(select(StoredRecording))).all()
        question = await db.scalar(select(Message).order_by(Message.seq).limit(1))
    assert 0 < stored.duration_seconds - early.duration_seconds < 0.2
    assert question is not None
    assert question.content == transcriber.text


async def test_who_goes_on_is_transcribed_anew_and_the_turn_pays_for_both(
    open_line: OpenLine, transcriber: FakeTranscriber, spoken: bytes, database: Database
) -> None:
    async with open_line() as line:
        detection = {"type": "server_vad", "silence_duration_ms": 1000}
        await configure(line, audio={"input": {"turn_detection": detection}})
        await say_and_be_heard(line, spoken, transcriber)
        await say(line, spoken + END + END)
        await line.until("response.done")

    first, both = transcriber.recordings
    assert both.duration_seconds > 1.8 * first.duration_seconds
    (turn,) = await turns_of(database)
    assert turn.speech_in_seconds == pytest.approx(
        first.duration_seconds + both.duration_seconds, abs=0.02
    )


async def test_failure_ahead_is_not_billed_and_asked_again_by_the_turn(
    open_line: OpenLine, transcriber: FakeTranscriber, spoken: bytes, database: Database
) -> None:
    async def fail_once() -> None:
        transcriber.while_hearing = None
        raise ProviderUnavailable("Away.", retry_after_seconds=60)

    transcriber.while_hearing = fail_once
    async with open_line() as line:
        await say(line, spoken + END)
        done = await line.until("response.done")

    assert done["response"]["status"] == "completed"
    assert len(transcriber.recordings) == 2
    (turn,) = await turns_of(database)
    assert turn.speech_in_seconds == pytest.approx(
        transcriber.recordings[1].duration_seconds, abs=0.01
    )


async def test_nothing_is_transcribed_ahead_for_who_has_used_up_the_day(
    open_line: OpenLine,
    client: httpx2.AsyncClient,
    transcriber: FakeTranscriber,
    chat_model: FakeChatModel,
    spoken: bytes,
) -> None:
    key = await key_of(client, "turns:write", tokens_per_day=7_000)
    chat_model.counts = (7_000, 0, 3_000)
    async with open_line(headers=bearer(key)) as line:
        await ask(line, "Hi.")
        await say(line, spoken + END)
        done = await line.until("response.done")

    assert done["response"]["status_details"]["error"]["code"] == "insufficient_quota"
    assert not transcriber.recordings


async def test_speech_without_words_is_neither_stored_nor_answered(
    open_line: OpenLine, transcriber: FakeTranscriber, chat_model: FakeChatModel,
    spoken: bytes, database: Database,
) -> None:  # fmt: skip
    transcriber.text = " "
    async with open_line() as line:
        await say_and_be_heard(line, spoken, transcriber)
        await say(line, END)
        told = await line.until("conversation.item.input_audio_transcription.completed")
        wordless_seconds = transcriber.recordings[0].duration_seconds
        transcriber.text = "Hello."
        await say(line, spoken + END)
        await line.until("response.done")

    kinds = [kind for kind in line.types if not kind.startswith("session.")][:6]
    assert kinds == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
    ]
    assert (told["transcript"], told["item_id"]) == ("", line.events[1]["item_id"])
    assert len(chat_model.requests) == 1
    (turn,) = await turns_of(database)  # pays for both
    assert turn.speech_in_seconds == pytest.approx(
        wordless_seconds + transcriber.recordings[1].duration_seconds, abs=0.02
    )


async def test_what_no_turn_pays_for_counts_against_the_minutes_of_the_day(
    open_line: OpenLine, client: httpx2.AsyncClient, transcriber: FakeTranscriber,
    spoken: bytes, database: Database,
) -> None:  # fmt: skip
    transcriber.text = ""
    key = await key_of(client, "turns:write", upload_minutes_per_day=1)
    async with open_line(headers=bearer(key)) as line:
        await say_and_be_heard(line, spoken, transcriber)
        await say(line, END)
        await line.until("conversation.item.input_audio_transcription.completed")

    async def is_charged() -> bool:
        async with database.reading() as db:
            rows = (await db.scalars(select(Budget).where(Budget.bucket.contains(key["id"])))).all()
        charged = sum(row.upload_ms for row in rows) / 1000
        return charged == pytest.approx(transcriber.recordings[0].duration_seconds, abs=0.01)

    await until(is_charged)
