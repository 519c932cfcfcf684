"""One line: items, responses and errors in the protocol's words, and what of it is stored."""

import base64
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from uuid import UUID

import anyio
import httpx2
import orjson
import pytest
from sqlalchemy import select

from app.core.database import Database
from app.models import Message, MessageStatus, Modality, Session, StoredRecording, Turn
from app.services.ports import (
    ChatFinished,
    ChatItem,
    ChatRequest,
    FinishReason,
    ProviderUnavailable,
    ToolCallDelta,
)
from app.services.prompt_lines import PromptAnswer, PromptResult
from tests.live.conftest import (
    OpenLine,
    ask,
    configure,
    say,
    send_message,
    silence,
    without_detection,
)
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.turns import Gate
from tests.support.websocket import WebSocket

pytestmark = pytest.mark.anyio

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


class CallingModel(FakeChatModel):
    """Calls a tool where the last line of the prompt is the user's, and else answers."""

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if request.messages[-1].role != "user" or not request.tools:
            async for item in super().stream(request):
                yield item
            return
        self.requests.append(request)
        await anyio.lowlevel.checkpoint()
        yield ToolCallDelta(0, "theirs", "weather", '{"city":')
        yield ToolCallDelta(0, "theirs", "weather", '"Bern"}')
        yield ChatFinished(FinishReason.TOOL_CALLS, "fake-1", 7, 0, 3)


async def stored(database: Database) -> Sequence[Message]:
    """Return all messages, oldest first."""
    async with database.reading() as db:
        return (await db.scalars(select(Message).order_by(Message.seq))).all()


def sound_of(line: WebSocket) -> bytes:
    return b"".join(
        base64.b64decode(event["delta"])
        for event in line.events
        if event["type"] == "response.output_audio.delta"
    )


async def test_line_says_how_it_is_set_up_and_stores_nothing_yet(
    open_line: OpenLine, database: Database
) -> None:
    async with open_line("model=gpt-realtime") as line:
        created = await line.until("session.created")

    session = created["session"]
    assert session["type"] == "realtime"
    assert session["object"] == "realtime.session"
    assert session["model"] == "gpt-realtime"
    detection = session["audio"]["input"]["turn_detection"]
    assert detection["type"] == "server_vad"
    assert detection["interrupt_response"] is detection["create_response"] is True
    async with database.reading() as db:
        assert await db.scalar(select(Session.id)) is None


async def test_message_is_answered_with_words_and_sound_in_the_protocols_order(
    open_line: OpenLine, database: Database, chat_model: FakeChatModel, speaker: FakeSpeaker
) -> None:
    chat_model.answer = "Hello there, my friend! How are you?"
    async with open_line() as line:
        session = (await line.until("session.created"))["session"]
        response = await ask(line, "Hi.", metadata={"topic": "greeting"})

    assert [each for each in line.types if each != "response.output_audio.delta"] == [
        "session.created",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "response.output_audio_transcript.delta",
        "response.output_audio_transcript.delta",
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    words = [e["delta"] for e in line.events if e["type"].endswith("transcript.delta")]
    assert "".join(words) == chat_model.answer
    assert [text for text, _ in speaker.said] == [each.strip() for each in words]
    spoken_seconds = sum(len(text) for text, _ in speaker.said) / 50
    assert len(sound_of(line)) / 48_000 == pytest.approx(spoken_seconds)
    assert len({event["event_id"] for event in line.events}) == len(line.events)

    question, answer = await stored(database)
    assert (question.content, answer.content) == ("Hi.", chat_model.answer)
    assert (question.modality, answer.modality) == (Modality.TEXT, Modality.VOICE)
    assert session["id"] == f"sess_{answer.session_id.hex}"
    assert answer.turn_id is not None
    assert response["id"] == f"resp_{answer.turn_id.hex}"
    assert response["status"] == "completed"
    assert response["metadata"] == {"topic": "greeting"}
    assert response["usage"]["total_tokens"] == 10
    (item,) = response["output"]
    assert item["id"] == f"item_{answer.id.hex}"
    assert item["content"] == [{"type": "output_audio", "transcript": chat_model.answer}]
    added = next(e for e in line.events if e["type"] == "conversation.item.added")
    assert added["item"]["id"] == f"item_{question.id.hex}"


async def test_answer_can_be_text(
    open_line: OpenLine, speaker: FakeSpeaker, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        await configure(line, output_modalities=["text"])
        response = await ask(line, "Hi.")

    assert response["output_modalities"] == ["text"]
    assert response["output"][0]["content"] == [{"type": "output_text", "text": chat_model.answer}]
    deltas = [e["delta"] for e in line.events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == chat_model.answer
    assert not speaker.said
    assert not sound_of(line)


async def test_code_is_told_and_not_spoken(open_line: OpenLine, chat_model: FakeChatModel) -> None:
    chat_model.answer = "Look at this line.\n```\nprint(1)\n```\n"
    async with open_line() as line:
        response = await ask(line, "Show me.")

    words = [e["delta"] for e in line.events if e["type"].endswith("transcript.delta")]
    assert "".join(words) == chat_model.answer
    assert response["output"][0]["content"][0]["transcript"] == chat_model.answer


async def test_committed_speech_is_a_stored_voice_turn(
    open_line: OpenLine, database: Database, transcriber: FakeTranscriber, spoken: bytes
) -> None:
    async with open_line() as line:
        await without_detection(line)
        await say(line, spoken)
        await line.send("input_audio_buffer.commit")
        committed = await line.until("input_audio_buffer.committed")
        await line.send("response.create")
        await line.until("response.done")

    item_id = committed["item_id"]
    types = line.types
    assert types.index("conversation.item.done") < types.index("response.created")
    heard = next(e for e in line.events if e["type"].endswith("transcription.completed"))
    assert heard["item_id"] == item_id
    assert heard["transcript"] == transcriber.text
    assert heard["usage"] == {"type": "duration", "seconds": pytest.approx(3.5, abs=1)}
    assert types.index(heard["type"]) < types.index("response.output_item.added")
    question, answer = await stored(database)
    assert item_id == f"item_{question.id.hex}"
    assert question.content == transcriber.text
    assert question.modality is answer.modality is Modality.VOICE
    async with database.reading() as db:
        recording = (await db.scalars(select(StoredRecording))).one()
    assert recording.data == transcriber.recordings[0].data
    assert recording.duration_seconds == pytest.approx(len(spoken) / 48_000, abs=0.01)


async def test_recordings_of_one_response_are_heard_as_one(
    open_line: OpenLine, transcriber: FakeTranscriber, spoken: bytes, database: Database
) -> None:
    async with open_line() as line:
        await without_detection(line)
        for _ in range(2):
            await say(line, spoken)
            await line.send("input_audio_buffer.commit")
        await line.send("response.create")
        await line.until("response.done")

    (heard,) = transcriber.recordings
    assert heard.duration_seconds == pytest.approx(2 * len(spoken) / 48_000 + 0.2, abs=0.02)
    assert len(await stored(database)) == 2


async def test_history_that_a_client_brings_is_stored_and_shown_to_the_model(
    open_line: OpenLine, database: Database, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        await send_message(line, "My name is Kim.")
        await send_message(line, "Nice to meet you, Kim.", "assistant")
        await send_message(line, "What is")
        await ask(line, "my name?")
        await ask(line, "And yours?")

    assert [each.content for each in await stored(database)] == [
        "My name is Kim.",
        "Nice to meet you, Kim.",
        "What is\nmy name?",
        chat_model.answer,
        "And yours?",
        chat_model.answer,
    ]
    assert chat_model.prompts[1] == [
        ("user", "My name is Kim."),
        ("assistant", "Nice to meet you, Kim."),
        ("user", "What is\nmy name?"),
        ("assistant", chat_model.answer),
        ("user", "And yours?"),
    ]


async def test_settings_of_a_session_reach_the_providers_and_a_response_may_differ(
    open_line: OpenLine, chat_model: FakeChatModel, speaker: FakeSpeaker, agent_id: str,
    database: Database,
) -> None:  # fmt: skip
    async with open_line(f"model={agent_id}") as line:
        await configure(
            line,
            instructions="Answer in rhymes.",
            max_output_tokens=50,
            audio={"output": {"voice": "cedar"}},
        )
        await ask(line, "Hi.")
        await ask(line, "Hi.", instructions="Shout.", max_output_tokens=20)

    first, second = chat_model.requests
    assert first.messages[0].content == "Be brief.\n\nAnswer in rhymes."
    assert second.messages[0].content == "Be brief.\n\nShout."
    assert (first.max_output_tokens, second.max_output_tokens) == (50, 20)
    assert {voice for _, voice in speaker.said} == {"cedar"}
    async with database.reading() as db:
        requests = (await db.scalars(select(Turn.request).order_by(Turn.user_seq))).all()
    assert requests[0] is not None
    assert requests[0]["own"]["system_prompt"] == "Answer in rhymes."
    assert requests[0]["own"]["voice"] == "cedar"


@pytest.mark.parametrize("chat_model", [CallingModel()])
async def test_calls_of_the_clients_tools_end_a_response_and_their_outputs_begin_the_next(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database
) -> None:
    async with open_line() as line:
        await configure(line, tools=[WEATHER])
        response = await ask(line, "How is the weather?")
        (call,) = response["output"]
        await line.send(
            "conversation.item.create",
            item={"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."},
        )
        await line.send("response.create")
        answered = (await line.until("response.done"))["response"]
        await line.send(
            "conversation.item.create",
            item={"type": "function_call_output", "call_id": "call_none", "output": "?"},
        )
        refused = await line.until("error")

    assert call["type"] == "function_call"
    assert (call["name"], call["arguments"]) == ("weather", '{"city":"Bern"}')
    done = next(e for e in line.events if e["type"].endswith("call_arguments.done"))
    assert done["call_id"] == call["call_id"]
    assert done["arguments"] == call["arguments"]
    assert answered["output"][0]["content"][0]["transcript"] == chat_model.answer
    assert refused["error"]["code"] == "invalid_tool_call_id"
    made, result = chat_model.requests[-1].messages[-2:]
    assert isinstance(made, PromptAnswer)
    assert isinstance(result, PromptResult)
    assert made.calls[0].id == result.call_id == call["call_id"]
    assert result.content == "Sunny."
    messages = await stored(database)
    assert [each.content for each in messages] == ["How is the weather?", "", "", chat_model.answer]
    assert messages[2].parts == [
        {"type": "tool_result", "call_id": call["call_id"], "content": "Sunny."}
    ]


@pytest.mark.parametrize("chat_model", [CallingModel()])
async def test_call_that_the_client_does_not_answer_has_a_result_for_the_model(
    open_line: OpenLine, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        await configure(line, tools=[WEATHER])
        await ask(line, "How is the weather?")
        await configure(line, tools=[])
        response = await ask(line, "Never mind.")

    assert response["status"] == "completed"
    _, made, result, question = chat_model.requests[-1].messages
    assert isinstance(made, PromptAnswer)
    assert "did not answer" in result.content
    assert question.content == "Never mind."


async def test_one_response_at_a_time_and_it_can_be_cancelled(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with open_line() as line:
        await send_message(line, "Hi.")
        await line.send("response.create")
        await line.until("response.created")
        await line.send("response.create", event_id="mine")
        busy = await line.until("error")
        await line.send("response.cancel")
        response = (await line.until("response.done"))["response"]
        await line.send("response.cancel")
        idle = await line.until("error")
        gate.opened.set()
        again = await ask(line, "Hi again.")

    assert busy["error"]["code"] == "conversation_already_has_active_response"
    assert busy["error"]["event_id"] == "mine"
    assert response["status"] == "cancelled"
    assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert idle["error"]["code"] == "response_cancel_not_active"
    assert idle["error"]["message"].startswith("Cancellation failed")
    assert again["status"] == "completed"
    statuses = [each.status for each in await stored(database)]
    assert statuses == [
        MessageStatus.COMPLETED, MessageStatus.CANCELLED,
        MessageStatus.COMPLETED, MessageStatus.COMPLETED,
    ]  # fmt: skip


async def test_failure_of_a_provider_ends_the_response_and_not_the_line(
    open_line: OpenLine, chat_model: FakeChatModel
) -> None:
    async def fail() -> None:
        raise ProviderUnavailable("The AI provider cannot be reached.")

    chat_model.while_thinking = fail
    async with open_line() as line:
        failed = await ask(line, "Hi.")
        chat_model.while_thinking = None
        answered = await ask(line, "Hi.")

    assert failed["status"] == "failed"
    error = failed["status_details"]["error"]
    assert error["code"] == "provider_unavailable"
    assert error["message"] == "The AI provider cannot be reached."
    assert answered["status"] == "completed"


async def test_recording_without_words_fails_its_response(
    open_line: OpenLine, transcriber: FakeTranscriber, chat_model: FakeChatModel, spoken: bytes
) -> None:
    transcriber.text = " "
    async with open_line() as line:
        await without_detection(line)
        await say(line, spoken)
        await line.send("input_audio_buffer.commit")
        await line.send("response.create")
        failed = await line.until("conversation.item.input_audio_transcription.failed")
        response = (await line.until("response.done"))["response"]

    assert failed["error"]["code"] == "no_speech"
    assert response["status"] == "failed"
    assert not chat_model.requests


async def test_items_can_be_retrieved_and_those_not_answered_deleted(
    open_line: OpenLine, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        await send_message(line, "Forget this.", id="mine")
        await line.send("conversation.item.retrieve", item_id="mine")
        retrieved = await line.until("conversation.item.retrieved")
        await send_message(line, "Twice.", id="mine")
        twice = await line.until("error")
        await line.send("conversation.item.delete", item_id="mine")
        deleted = await line.until("conversation.item.deleted")
        await line.send("conversation.item.delete", item_id="mine")
        unknown = await line.until("error")
        await send_message(line, "Second.", id="second")
        await send_message(line, "First.", id="first")
        await line.send(
            "conversation.item.create",
            previous_item_id="root",
            item={
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "Zeroth."}],
            },
        )
        await line.send("response.create")
        await line.until("response.done")

    assert retrieved["item"]["content"] == [{"type": "input_text", "text": "Forget this."}]
    assert twice["error"]["code"] == "item_create_duplicate_item_id"
    assert deleted["item_id"] == "mine"
    assert unknown["error"]["code"] == "item_delete_invalid_item_id"
    assert chat_model.prompts == [[("user", "Zeroth.\nSecond.\nFirst.")]]


def message(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    item = {"type": "message", "role": "user", "content": content}
    return {"type": "conversation.item.create", "item": item, **more}


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": session}


def update_input(**audio: Any) -> dict[str, Any]:
    return update(audio={"input": audio})


def of_item(action: str, **more: Any) -> dict[str, Any]:
    return {"type": f"conversation.item.{action}", "item_id": "x", **more}


def respond(**response: Any) -> dict[str, Any]:
    return {"type": "response.create", "response": response}


DETECTION = "session.audio.input.turn_detection"
TEXT = {"type": "input_text", "text": "x"}
APPEND: dict[str, Any] = {"type": "input_audio_buffer.append"}


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"type": "session.upate"}, "invalid_value", "type"),
        ({"type": "output_audio_buffer.clear"}, "invalid_value", "type"),
        ({"type": "session.update", "session": []}, "invalid_value", "session"),
        (update(voise="x"), "unknown_parameter", "session.voise"),
        (update(tools=[{"type": "x"}]), "unsupported_parameter", "session.tools[0]"),
        (update(max_output_tokens=0), "invalid_value", "session.max_output_tokens"),
        (update_input(format={"type": "mp3"}), "invalid_value", "session.audio.input.format.type"),
        (
            update_input(turn_detection={"threshold": "a"}),
            "invalid_value",
            f"{DETECTION}.threshold",
        ),
        (update_input(turn_detection={"type": "x"}), "invalid_value", f"{DETECTION}.type"),
        (update_input(turn_detection={"x": 1}), "unknown_parameter", f"{DETECTION}.x"),
        (APPEND | {"audio": "%%"}, "invalid_value", "audio"),
        (APPEND, "invalid_type", "audio"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
        ({"type": "conversation.item.create", "item": 1}, "invalid_type", "item"),
        (message(), "invalid_value", "item.content"),
        (message({"type": "input_video"}), "invalid_value", "item.content[0].type"),
        (
            message(TEXT, previous_item_id="none"),
            "item_create_invalid_previous_item_id",
            "previous_item_id",
        ),
        (of_item("truncate", audio_end_ms=1), "item_truncate_invalid_item_id", "item_id"),
        (of_item("truncate"), "invalid_type", "audio_end_ms"),
        (of_item("retrieve"), "item_retrieve_invalid_item_id", "item_id"),
        (respond(conversation="none"), "unsupported_parameter", "response.conversation"),
        (respond(x=1), "unknown_parameter", "response.x"),
        (respond(metadata=1), "invalid_value", "response.metadata"),
    ],
)
async def test_events_that_cannot_be_served_are_answered_and_leave_the_line_open(
    lone_line: WebSocket, event: dict[str, Any], code: str, param: str | None
) -> None:
    await lone_line.send_text(orjson.dumps(event).decode())
    error = (await lone_line.until("error"))["error"]

    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.fixture
async def lone_line(open_line: OpenLine) -> AsyncGenerator[WebSocket]:
    async with open_line() as line:
        yield line
        await line.send("session.update", session={"type": "realtime"})
        await line.until("session.updated")


async def test_messages_that_are_no_events_are_answered(open_line: OpenLine) -> None:
    async with open_line() as line:
        await line.send_text("{")
        assert (await line.until("error"))["error"]["code"] == "invalid_json"
        await line.send_text("[1]")
        assert (await line.until("error"))["error"]["code"] == "invalid_type"
        await line.send_bytes(b"\0\1")
        assert (await line.until("error"))["error"]["code"] == "invalid_type"
        await line.send_text('{"type": "\\ud800"}')
        await line.until("error")
        assert (await ask(line, "Hi."))["status"] == "completed"


@pytest.mark.parametrize("law", ["audio/pcmu", "audio/pcma"])
async def test_telephones_are_heard_and_answered(
    open_line: OpenLine, transcriber: FakeTranscriber, law: str
) -> None:
    telephone = {"type": law}
    async with open_line() as line:
        audio = {
            "input": {"format": telephone, "turn_detection": None},
            "output": {"format": telephone},
        }
        await configure(line, audio=audio)
        await say(line, b"\xd5" * 8000)
        await line.send("input_audio_buffer.commit")
        await line.send("response.create")
        response = (await line.until("response.done"))["response"]

    assert transcriber.recordings[0].duration_seconds == pytest.approx(1, abs=0.01)
    assert response["audio"]["output"]["format"] == telephone
    assert len(sound_of(line)) == pytest.approx(8000 * len("Hello there!") / 50, abs=20)


async def test_model_is_an_agent_or_the_built_in_one(
    open_line: OpenLine, client: httpx2.AsyncClient, agent_id: str, chat_model: FakeChatModel
) -> None:
    for model in ("agent-ada", agent_id, "gpt-realtime", "gpt-realtime-mini"):
        async with open_line(f"model={model}") as line:
            await ask(line, "Hi.")

    firsts = [request.messages[0] for request in chat_model.requests]
    assert [each.content for each in firsts] == ["Be brief.", "Be brief.", "Hi.", "Hi."]
    agents = (await client.get("/agents")).json()
    assert sorted(agent["name"] for agent in agents) == ["Ada", "realtime"]


async def test_answer_that_reaches_its_limit_is_incomplete(
    open_line: OpenLine, chat_model: FakeChatModel
) -> None:
    chat_model.finish_reason = FinishReason.LENGTH
    async with open_line() as line:
        response = await ask(line, "Hi.")

    assert response["status"] == "incomplete"
    assert response["status_details"]["reason"] == "max_output_tokens"


async def test_sound_in_items_and_silence_are_heard(
    open_line: OpenLine, transcriber: FakeTranscriber, spoken: bytes, database: Database
) -> None:
    async with open_line() as line:
        content = [{"type": "input_audio", "audio": base64.b64encode(spoken).decode()}]
        await line.send(
            "conversation.item.create",
            item={"type": "message", "role": "user", "content": content},
        )
        await line.send("response.create")
        await line.until("response.done")
        await say(line, silence(1000))

    assert transcriber.recordings[0].duration_seconds == pytest.approx(
        len(spoken) / 48_000, abs=0.01
    )
    assert "input_audio_buffer.speech_started" not in line.types
    question, _ = await stored(database)
    assert UUID(line.events[1]["item"]["id"].removeprefix("item_")) == question.id


async def test_a_line_holds_a_bounded_conversation(open_line: OpenLine) -> None:
    async with open_line() as line:
        await configure(line, audio={"input": {"turn_detection": None}})
        second = base64.b64encode(bytes(48_000 * 100)).decode()
        for _ in range(11):  # of 3.2 MB each, once they are resampled
            await line.send("input_audio_buffer.append", audio=second)
            await line.send("input_audio_buffer.commit")
        refused = await line.until("error")
        await line.send("session.update", session={"type": "realtime"})
        await line.until("session.updated")

    assert refused["error"]["code"] == "conversation_too_long"
    assert line.types.count("conversation.item.added") == 10
