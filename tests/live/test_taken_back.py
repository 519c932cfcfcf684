"""Who coughs into an answer does not end it: it goes on with what was not heard."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select

from app.core.database import Database
from app.models import Message, MessageStatus, Turn, TurnStatus
from tests.live.conftest import OpenLine, ask, say, send_message, silence
from tests.live.test_interruptions import begin_long_answer, seconds_of_sound, stored
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until
from tests.support.websocket import WebSocket

pytestmark = pytest.mark.anyio

STARTED = "input_audio_buffer.speech_started"
SHORT = "Well. This is the second sentence. And this is the third one."


@pytest.fixture
def cough(spoken: bytes) -> bytes:
    """Half a second of a voice, in which the fake transcriber finds no words."""
    return spoken[: 48 * 700] + silence(250)


async def cough_into(line: WebSocket, cough: bytes, transcriber: FakeTranscriber) -> None:
    """Send a cough up to the silence behind it; return once its words are known."""
    count = len(transcriber.recordings)
    await say(line, cough)
    await until(lambda: len(transcriber.recordings) > count)
    await line.send("session.update", session={"type": "realtime"})
    await line.until("session.updated")


def answers(line: WebSocket) -> Sequence[dict[str, Any]]:
    return [e["response"] for e in line.events if e["type"] == "response.done"]


def words_of(line: WebSocket, item_id: str) -> str:
    return "".join(
        event["delta"]
        for event in line.events
        if event["type"] == "response.output_audio_transcript.delta" and event["item_id"] == item_id
    )


async def test_answer_goes_on_behind_a_cough_in_a_new_response_of_the_same_turn(
    open_line: OpenLine, chat_model: FakeChatModel, speaker: FakeSpeaker, database: Database,
    transcriber: FakeTranscriber, cough: bytes,
) -> None:  # fmt: skip
    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        transcriber.text = ""
        await cough_into(line, cough, transcriber)
        said = len(speaker.said)
        cut = answers(line)[0]
        place = len(line.events)
        await say(line, silence(600))
        created = (await line.until("response.created"))["response"]
        told = [event["type"] for event in line.events[place:]]
        await line.until("response.output_audio.delta")
        await line.send("response.cancel")
        await line.until("response.done")

    assert (cut["status"], cut["status_details"]["reason"]) == ("cancelled", "turn_detected")
    assert told == [
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "conversation.item.input_audio_transcription.completed",
        "response.created",
    ]
    assert created["id"] == cut["id"] + "_2"
    assert said <= len(speaker.said) <= said + 3
    (request,) = chat_model.requests
    assert request.messages[-1].content == "Tell me everything."
    question, answer = await stored(database)
    assert (question.role.value, answer.role.value) == ("user", "assistant")


async def test_all_of_the_answer_is_heard_once_and_stored_as_heard(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database,
    transcriber: FakeTranscriber, cough: bytes,
) -> None:  # fmt: skip
    chat_model.answer = SHORT
    seconds = len(SHORT.replace(" ", "")) / 50
    async with open_line() as line:
        response = await ask(line, "Hi.")
        all_seconds = seconds_of_sound(line.events)
        transcriber.text = ""
        await cough_into(line, cough, transcriber)
        place = len(line.events)
        await line.send(
            "conversation.item.truncate",
            item_id=response["output"][0]["id"],
            content_index=0,
            audio_end_ms=200,
        )
        await line.until("conversation.item.truncated")
        await say(line, silence(600))
        again = (await line.until("response.done"))["response"]
        rest_seconds = seconds_of_sound(line.events[place:])

    assert seconds < all_seconds
    assert (response["status"], again["status"]) == ("completed", "completed")
    assert rest_seconds == pytest.approx(all_seconds - 0.2, abs=0.01)
    item = again["output"][0]
    assert item["id"] == response["output"][0]["id"] + "_r2"
    heard = " " + item["content"][0]["transcript"].strip()
    assert SHORT.endswith(heard)
    assert heard == " is the second sentence. And this is the third one."
    await wait_until_settled(database)
    _, answer = await stored(database)
    assert (answer.content, answer.heard_content) == (SHORT, None)
    assert answer.status is MessageStatus.COMPLETED


async def test_cough_while_the_model_thinks_does_not_cancel_the_turn(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database,
    transcriber: FakeTranscriber, cough: bytes,
) -> None:  # fmt: skip
    gate = Gate()
    chat_model.while_thinking = gate
    async with open_line() as line:
        await send_message(line, "Hi.")
        await line.send("response.create")
        await gate.arrived.wait()
        transcriber.text = ""
        await cough_into(line, cough, transcriber)
        gate.opened.set()
        await say(line, silence(600))
        await line.until("response.created")
        done = (await line.until("response.done"))["response"]

    assert [each["status"] for each in answers(line)] == ["cancelled", "completed"]
    assert done["output"][0]["content"][0]["transcript"] == chat_model.answer
    assert len(chat_model.requests) == 1
    async with database.reading() as db:
        (turn,) = (await db.scalars(select(Turn))).all()
    assert turn.status is TurnStatus.COMPLETED


async def test_short_word_interrupts_as_soon_as_it_is_known(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database,
    transcriber: FakeTranscriber, cough: bytes,
) -> None:  # fmt: skip
    transcriber.text = "Stop!"
    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        chat_model.answer = "All right."
        await cough_into(line, cough, transcriber)
        await say(line, silence(600))
        done = (await line.until("response.done"))["response"]

    assert done["output"][0]["content"][0]["transcript"] == "All right."
    await wait_until_settled(database)
    _, answer, question, _ = await stored(database)
    assert answer.status is MessageStatus.CANCELLED
    assert answer.heard_content is not None
    assert question.content == "Stop!"
    assert dict(chat_model.prompts[1])["assistant"] == answer.heard_content


async def test_answer_waits_for_words_that_are_not_known_yet(
    open_line: OpenLine, chat_model: FakeChatModel, transcriber: FakeTranscriber, cough: bytes
) -> None:
    gate = Gate()
    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        transcriber.text, transcriber.while_hearing = "", gate
        await say(line, cough + silence(600))
        await line.until("input_audio_buffer.committed")
        place = len(line.events)
        gate.opened.set()
        await line.until("response.created")
        await line.send("response.cancel")
        await line.until("response.done")

    assert line.events[place]["type"] == "conversation.item.added"


async def test_client_that_clears_its_sound_ends_the_pause(
    open_line: OpenLine, chat_model: FakeChatModel, cough: bytes, database: Database
) -> None:
    async def is_cancelled() -> bool:
        async with database.reading() as db:
            turns = await db.scalars(select(Turn.status))
            return turns.all() == [TurnStatus.CANCELLED]

    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        await say(line, cough[: 48 * 700])
        await line.until(STARTED)
        await line.send("input_audio_buffer.clear")
        await line.until("input_audio_buffer.cleared")
        await until(is_cancelled)


async def test_turn_goes_on_when_the_client_leaves_in_a_pause(
    open_line: OpenLine, chat_model: FakeChatModel, cough: bytes, database: Database
) -> None:
    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        await say(line, cough[: 48 * 700])
        await line.until(STARTED)

    await wait_until_settled(database)
    async with database.reading() as db:
        answer = await db.scalar(select(Message).order_by(Message.seq.desc()).limit(1))
    assert answer is not None
    assert answer.status is MessageStatus.COMPLETED
