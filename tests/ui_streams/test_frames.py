"""The dialects of user interfaces as pure functions: events in, frames out."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import orjson
import pytest

from app.models import MessageStatus, Modality, Role, utc_now
from app.routers.ui_streams.agui_frames import AgUiEvents
from app.routers.ui_streams.chat_frames import UIMessageChunks
from app.routers.ui_streams.dialect import Answered, UIDialect
from app.services.turns.events import (
    AnswerMessage,
    EventValue,
    OutputTextDelta,
    ReasoningText,
    RequiredAction,
    StepStarted,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallCreated,
    ToolCallFailed,
    ToolCallProblem,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnInProgress,
    TurnProblem,
    TurnRequiresAction,
)
from app.services.turns.records import Usage

MESSAGE, TURN, CALL = UUID(int=1), UUID(int=2), UUID(int=3)
RUN = {"threadId": "thread", "runId": "run"}
Encode = Callable[..., list[dict[str, Any]]]


def frames_of(dialect: UIDialect, values: Sequence[EventValue]) -> list[dict[str, Any]]:
    """Return the data of a whole stream's frames, without `[DONE]`."""
    *frames, rest = (dialect.begin() + dialect.encode(values) + dialect.end()).split(b"\n\n")
    assert rest == b""
    assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames)
    data = [frame.removeprefix(b"data: ") for frame in frames]
    is_chat = isinstance(dialect, UIMessageChunks)
    assert (data[-1] == b"[DONE]", data.count(b"[DONE]")) == (is_chat, int(is_chat))
    return [orjson.loads(each) for each in data if each != b"[DONE]"]


def chat(*values: EventValue, **options: Any) -> list[dict[str, Any]]:
    return frames_of(UIMessageChunks(MESSAGE, TURN, **options), values)


def agui(*values: EventValue, **options: Any) -> list[dict[str, Any]]:
    return frames_of(AgUiEvents("thread", "run", MESSAGE, **options), values)


def answer(content: str) -> AnswerMessage:
    return AnswerMessage(
        MESSAGE, UUID(int=9), TURN, 2, Role.ASSISTANT, content, None, MessageStatus.COMPLETED,
        Modality.TEXT, utc_now(),
    )  # fmt: skip


def completed(content: str = "Hello") -> TurnCompleted:
    return TurnCompleted(answer(content), Usage(7, 2, 3), {})


def call(arguments: str = '{"city":"Bern"}') -> ToolCallCreated:
    return ToolCallCreated(CALL, 1, 0, "weather", "http", arguments)


def result(preview: str = '{"sky":"blue"}') -> ToolCallCompleted:
    return ToolCallCompleted(CALL, "completed", preview, 3.0)


def required(action: str, by: str = "user", **more: Any) -> TurnRequiresAction:
    return TurnRequiresAction([RequiredAction(CALL, action, "weather", "{}", by, None, **more)])


def nobody(_action: RequiredAction) -> bool:
    return False


def text_of(frames: Sequence[dict[str, Any]]) -> str:
    """Return the text of an answer, with a `|` between its parts."""
    kinds = {"text-end": "|", "TEXT_MESSAGE_END": "|"}
    shown = {"text-delta", "TEXT_MESSAGE_CONTENT"}
    pieces = [f["delta"] if f["type"] in shown else kinds.get(f["type"], "") for f in frames]
    return "".join(pieces).rstrip("|")


def test_chat_has_the_chunks_of_a_plain_answer_and_no_key_more() -> None:
    frames = chat(TurnInProgress(1), OutputTextDelta("Hel"), OutputTextDelta("lo"), completed())

    assert frames == [
        {"type": "start", "messageId": str(MESSAGE)},
        {"type": "start-step"},
        {"type": "text-start", "id": "text-1"},
        {"type": "text-delta", "id": "text-1", "delta": "Hel"},
        {"type": "text-delta", "id": "text-1", "delta": "lo"},
        {"type": "text-end", "id": "text-1"},
        {"type": "finish-step"},
        {
            "type": "finish",
            "messageMetadata": {
                "usage": {"inputTokens": 7, "outputTokens": 3},
                "turnId": str(TURN),
            },
        },
    ]


def test_agui_has_the_events_of_a_plain_answer() -> None:
    frames = agui(TurnInProgress(1), OutputTextDelta("Hel"), OutputTextDelta("lo"), completed())

    assert frames == [
        {"type": "RUN_STARTED", **RUN, "protocolVersion": "1.0"},
        {"type": "TEXT_MESSAGE_START", "messageId": str(MESSAGE), "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": str(MESSAGE), "delta": "Hel"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": str(MESSAGE), "delta": "lo"},
        {"type": "TEXT_MESSAGE_END", "messageId": str(MESSAGE)},
        {"type": "RUN_FINISHED", **RUN},
    ]


def test_chat_shows_reasoning_calls_and_results_in_their_steps() -> None:
    frames = chat(
        TurnInProgress(1),
        ReasoningText("Hm."),
        OutputTextDelta("Let me see."),
        ToolCallArguments("model-id", "weather", "{}"),
        call(),
        result(),
        StepStarted(2),
        OutputTextDelta("\n\n"),
        OutputTextDelta("Blue."),
        completed(),
    )

    assert [frame["type"] for frame in frames] == [
        "start", "start-step", "reasoning-start", "reasoning-delta", "reasoning-end", "text-start",
        "text-delta", "text-end", "tool-input-available", "tool-output-available", "finish-step",
        "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish",
    ]  # fmt: skip
    assert frames[8] == {
        "type": "tool-input-available",
        "toolCallId": str(CALL),
        "toolName": "weather",
        "input": {"city": "Bern"},
    }
    assert frames[9]["output"] == {"sky": "blue"}
    assert text_of(frames) == "Let me see.|Blue."


def test_agui_shows_reasoning_calls_and_results() -> None:
    frames = agui(
        TurnInProgress(1),
        ReasoningText("Hm."),
        call(),
        result("Blue"),
        StepStarted(2),
        OutputTextDelta("Blue."),
        completed(),
    )

    assert [frame["type"] for frame in frames] == [
        "RUN_STARTED", "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT",
        "REASONING_MESSAGE_END", "REASONING_END", "TOOL_CALL_START", "TOOL_CALL_ARGS",
        "TOOL_CALL_END", "TOOL_CALL_RESULT", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END", "RUN_FINISHED",
    ]  # fmt: skip
    assert frames[6] == {
        "type": "TOOL_CALL_START",
        "toolCallId": str(CALL),
        "toolCallName": "weather",
    }
    assert (frames[7]["delta"], frames[9]["content"]) == ('{"city":"Bern"}', "Blue")
    assert frames[10]["messageId"] != frames[2]["messageId"]


def test_what_is_no_json_is_shown_as_text() -> None:
    frames = chat(TurnInProgress(1), call("{broken"), result("plain words"))

    assert frames[2]["input"] == "{broken"
    assert frames[3]["output"] == "plain words"


@pytest.mark.parametrize("encode", [chat, agui])
def test_failed_call_is_told(encode: Encode) -> None:
    problem = ToolCallProblem("tool-failed", "It broke.")
    frames = encode(TurnInProgress(1), call(), ToolCallFailed(CALL, "failed", problem))

    failure = frames[-3] if encode is chat else frames[-2]
    assert "It broke." in {failure.get("errorText"), failure.get("content")}


@pytest.mark.parametrize("encode", [chat, agui])
@pytest.mark.parametrize(
    ("again", "text"),
    [
        (["Hello", " you"], "Hello you"),
        (["He", "llo", " you"], "Hello you"),
        (["Hello"], "Hello"),
        (["Hel", "p"], "Hello|Help"),
        (["Hel"], "Hello|Hel"),
        (["Other"], "Hello|Other"),
    ],
)
def test_later_attempt_shows_what_is_new(encode: Encode, again: list[str], text: str) -> None:
    deltas = [OutputTextDelta(piece) for piece in again]

    frames = encode(
        TurnInProgress(1), OutputTextDelta("Hello"), TurnInProgress(2), *deltas, completed()
    )

    assert text_of(frames).replace("Hello| you", "Hello you") == text


@pytest.mark.parametrize("encode", [chat, agui])
def test_answer_in_json_is_shown_once_it_is_valid(encode: Encode) -> None:
    frames = encode(
        TurnInProgress(1),
        OutputTextDelta('{"wrong'),
        TurnInProgress(1),
        OutputTextDelta('{"city":"Bern"}'),
        completed('{"city":"Bern"}'),
        is_typed=True,
    )

    assert text_of(frames) == '{"city":"Bern"}'


def test_failure_ends_open_parts_and_says_why() -> None:
    failed = TurnFailed(TurnProblem("upstream-incomplete", "Title", "It broke off."), True)
    values = (TurnInProgress(1), OutputTextDelta("Hel"), failed)

    assert chat(*values)[-2:] == [
        {"type": "text-end", "id": "text-1"},
        {"type": "error", "errorText": "It broke off."},
    ]
    assert agui(*values)[-2:] == [
        {"type": "TEXT_MESSAGE_END", "messageId": str(MESSAGE)},
        {"type": "RUN_ERROR", "message": "It broke off.", "code": "upstream-incomplete"},
    ]


def test_cancellation_ends_open_parts() -> None:
    values = (TurnInProgress(1), OutputTextDelta("Hel"), TurnCancelled(answer("Hel")))

    assert [frame["type"] for frame in chat(*values)][-2:] == ["text-end", "abort"]
    assert agui(*values)[-1] == {"type": "RUN_FINISHED", **RUN, "outcome": {"type": "cancelled"}}


def test_clients_tool_waits_for_its_output() -> None:
    values = (TurnInProgress(1), call("{}"), required("output"))

    assert [frame["type"] for frame in chat(*values)][2:] == [
        "tool-input-available", "finish-step", "finish",
    ]  # fmt: skip
    assert agui(*values)[-1]["outcome"] == {"type": "success", "pendingToolCallIds": [str(CALL)]}


def test_approval_is_asked_of_who_may_give_it() -> None:
    values = (TurnInProgress(1), call("{}"), required("approval"))

    asked = chat(*values)[3]
    assert asked == {
        "type": "tool-approval-request",
        "approvalId": str(CALL),
        "toolCallId": str(CALL),
    }
    assert "tool-approval-request" not in {
        frame["type"] for frame in chat(*values, may_approve=nobody)
    }
    outcome = agui(*values)[-1]["outcome"]
    assert outcome["type"] == "interrupt"
    assert outcome["interrupts"][0]["id"] == outcome["interrupts"][0]["toolCallId"] == str(CALL)
    others = agui(*values, may_approve=nobody)[-1]
    assert others["outcome"] == {"type": "success"}


def test_question_is_shown_with_its_form() -> None:
    form = {"type": "object", "properties": {"size": {"type": "string"}}}
    question = {"message": "Which size?", "form": form, "url": None}
    values = (TurnInProgress(1), call("{}"), required("answer", question=question))

    data = chat(*values)[3]
    assert (data["type"], data["data"]) == ("data-question", {"callId": str(CALL)} | question)
    interrupt = agui(*values)[-1]["outcome"]["interrupts"][0]
    assert (interrupt["message"], interrupt["responseSchema"]) == ("Which size?", form)


@pytest.mark.parametrize("encode", [chat, agui])
def test_output_that_came_with_the_request_is_not_sent_back(encode: Encode) -> None:
    answered = Answered(frozenset((str(CALL),)), frozenset((str(CALL),)))

    frames = encode(TurnInProgress(2), result(), completed(), answered=answered)

    assert not {"tool-output-available", "TOOL_CALL_RESULT"} & {each["type"] for each in frames}
