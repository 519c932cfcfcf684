"""Turn detection and barge-in: who speaks is answered, who interrupts is not talked over."""

import base64
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import select

from app.core.database import Database
from app.models import Message, MessageStatus, StoredRecording
from tests.live.conftest import OpenLine, ask, configure, say, send_message, silence
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until
from tests.support.websocket import WebSocket

pytestmark = pytest.mark.anyio

LONG = "Well. " + " ".join(f"This is sentence number {number} of many." for number in range(1, 41))
"""Half a minute of the fake speaker's sound."""
AHEAD_SECONDS = 4


async def stored(database: Database) -> Sequence[Message]:
    async with database.reading() as db:
        return (await db.scalars(select(Message).order_by(Message.seq))).all()


def seconds_of_sound(events: Sequence[dict[str, Any]]) -> float:
    sound = [e["delta"] for e in events if e["type"] == "response.output_audio.delta"]
    return sum(len(base64.b64decode(delta)) for delta in sound) / 48_000


async def begin_long_answer(line: WebSocket, chat_model: FakeChatModel) -> None:
    """Ask for an answer that takes half a minute, and return once as much as may be is here."""
    chat_model.answer = LONG
    await send_message(line, "Tell me everything.")
    await line.send("response.create")
    while seconds_of_sound(line.events) < AHEAD_SECONDS - 0.5:
        await line.receive()


async def test_who_speaks_is_answered_when_they_have_finished(
    open_line: OpenLine, database: Database, transcriber: FakeTranscriber, spoken: bytes
) -> None:
    async with open_line() as line:
        await say(line, silence(500) + spoken + silence(1200))
        await line.until("response.done")

    types = line.types
    heard = [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "conversation.item.input_audio_transcription.completed",
        "response.output_item.added",
    ]
    places = [types.index(kind) for kind in heard]
    assert places == sorted(places)
    started, stopped, committed = line.events[1:4]
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    assert 300 < started["audio_start_ms"] < stopped["audio_end_ms"]
    question, answer = await stored(database)
    assert committed["item_id"] == f"item_{question.id.hex}"
    assert question.content == transcriber.text
    assert answer.status is MessageStatus.COMPLETED


async def test_detection_can_leave_the_answer_to_the_client(
    open_line: OpenLine, spoken: bytes
) -> None:
    async with open_line() as line:
        detection = {"type": "server_vad", "create_response": False}
        session = await configure(line, audio={"input": {"turn_detection": detection}})
        await say(line, spoken + silence(1200))
        await line.until("conversation.item.done")
        assert "response.created" not in line.types
        await line.send("response.create")
        done = await line.until("response.done")

    assert session["audio"]["input"]["turn_detection"]["create_response"] is False
    assert done["response"]["status"] == "completed"


async def test_long_answers_are_handed_over_four_seconds_ahead(
    open_line: OpenLine, chat_model: FakeChatModel, speaker: FakeSpeaker, database: Database
) -> None:
    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        await line.send("response.cancel")
        done = await line.until("response.done")

    assert done["response"]["status"] == "cancelled"
    assert seconds_of_sound(line.events) < AHEAD_SECONDS + 3
    assert len(speaker.said) < 20
    await wait_until_settled(database)


async def test_who_speaks_interrupts_the_answer_and_the_history_has_what_was_heard(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database, spoken: bytes
) -> None:
    async with open_line() as line:
        await begin_long_answer(line, chat_model)
        chat_model.answer = "Yes?"
        await say(line, spoken)
        await line.until("input_audio_buffer.speech_started")
        place = len(line.events)
        cut = (await line.until("response.done"))["response"]
        between = line.events[place:]
        await say(line, silence(1200))
        second = (await line.until("response.done"))["response"]

    assert cut["status"] == "cancelled"
    assert cut["status_details"]["reason"] == "turn_detected"
    assert "response.output_audio.delta" not in [event["type"] for event in between]
    assert second["status"] == "completed"
    await wait_until_settled(database)
    _, answer, _, _ = await stored(database)
    assert answer.status is MessageStatus.CANCELLED
    assert answer.heard_content is not None
    assert LONG.startswith(answer.heard_content)
    assert len(answer.heard_content) < 50 * (AHEAD_SECONDS + 2)
    told = dict(chat_model.prompts[1]).get("assistant", "")
    assert told == answer.heard_content


async def test_client_says_what_was_heard_also_after_the_end(
    open_line: OpenLine, chat_model: FakeChatModel, speaker: FakeSpeaker, database: Database
) -> None:
    chat_model.answer = "One two three. Four five six."
    async with open_line() as line:
        response = await ask(line, "Count.")
        item_id = response["output"][0]["id"]
        first_ms = len("One two three.") * 20
        await line.send(
            "conversation.item.truncate",
            item_id=item_id,
            content_index=0,
            audio_end_ms=60_000,
        )
        too_long = await line.until("error")
        await line.send(
            "conversation.item.truncate",
            item_id=item_id,
            content_index=0,
            audio_end_ms=first_ms + 5 * 20,
        )
        truncated = await line.until("conversation.item.truncated")
        await line.send("conversation.item.retrieve", item_id=item_id)
        item = (await line.until("conversation.item.retrieved"))["item"]
        await ask(line, "Go on.")

    assert speaker.said[0][0] == "One two three."
    assert too_long["error"]["param"] == "audio_end_ms"
    assert truncated["audio_end_ms"] == first_ms + 100
    assert item["content"][0]["transcript"] == "One two three. Four"
    _, answer, *_ = await stored(database)
    assert (answer.content, answer.heard_content) == (chat_model.answer, "One two three. Four")
    assert ("assistant", "One two three. Four") in chat_model.prompts[1]


async def test_deleted_answer_counts_as_not_heard(
    open_line: OpenLine, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        response = await ask(line, "Hi.")
        await line.send("conversation.item.delete", item_id=response["output"][0]["id"])
        await line.until("conversation.item.deleted")
        await ask(line, "Again.")

    assert "assistant" not in dict(chat_model.prompts[1])


async def test_answer_is_not_interrupted_where_the_client_says_so(
    open_line: OpenLine, chat_model: FakeChatModel, spoken: bytes
) -> None:
    gate = Gate()
    async with open_line() as line:
        detection = {"type": "server_vad", "interrupt_response": False}
        await configure(line, audio={"input": {"turn_detection": detection}})
        chat_model.while_thinking = gate
        await send_message(line, "Hi.")
        await line.send("response.create")
        await line.until("response.created")
        await say(line, spoken)
        await line.until("input_audio_buffer.speech_started")
        gate.opened.set()
        done = await line.until("response.done")

    assert done["response"]["status"] == "completed"


async def test_what_was_cut_off_before_its_words_were_known_is_heard_again_with_the_rest(
    open_line: OpenLine, transcriber: FakeTranscriber, spoken: bytes, database: Database
) -> None:
    async def is_cancelled() -> bool:
        return (await stored(database))[1].status is MessageStatus.CANCELLED

    gate = Gate()
    transcriber.while_hearing = gate
    async with open_line() as line:
        await say(line, spoken + silence(1200))
        await line.until("response.created")
        await gate.arrived.wait()
        await say(line, spoken)
        cut = (await line.until("response.done"))["response"]
        await until(is_cancelled)
        gate.opened.set()
        await say(line, silence(1200))
        answered = (await line.until("response.done"))["response"]

    assert cut["status_details"]["reason"] == "turn_detected"
    assert answered["status"] == "completed"
    first, both = transcriber.recordings
    assert both.duration_seconds > 1.8 * first.duration_seconds
    async with database.reading() as db:
        durations = (await db.scalars(select(StoredRecording.duration_seconds))).all()
    assert both.duration_seconds in durations
    statuses = [each.status for each in await stored(database)]
    assert statuses == [
        MessageStatus.FAILED, MessageStatus.CANCELLED,
        MessageStatus.COMPLETED, MessageStatus.COMPLETED,
    ]  # fmt: skip


async def test_turn_goes_on_when_the_client_leaves_in_mid_answer(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database
) -> None:
    async with open_line() as line:
        await begin_long_answer(line, chat_model)

    async def is_stored() -> bool:
        messages = await stored(database)
        return messages[-1].status is MessageStatus.COMPLETED

    await until(is_stored)
    assert (await stored(database))[-1].content == LONG
