"""The dialect of responses as a pure function: events in, numbered events out."""

from typing import Any
from uuid import UUID

import orjson

from app.routers.openai.responses_frames import ResponseEvents, ResponseHead
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    StepStarted,
    ToolCallArguments,
)
from app.services.turns.records import Usage

HEAD = ResponseHead(UUID("ab" * 16), {"id": "resp_1", "object": "response", "model": "agent-ada"})
TEXT: dict[str, Any] = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
ERROR = {"error": {"message": "It broke.", "type": "server_error", "param": None, "code": "x"}}


def parsed(sent: bytes) -> list[Any]:
    """Return the data of a stream's events; their names and numbers are checked."""
    *frames, done, rest = sent.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    events: list[Any] = []
    for number, frame in enumerate(frames):
        name, data = frame.split(b"\n")
        event = orjson.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        assert event.pop("sequence_number") == number
        events.append(event)
    return events


def stream(
    *values: EventValue, finish_reason: str = "stop", shows_calls: bool = False
) -> list[Any]:
    events = ResponseEvents(HEAD, shows_calls=shows_calls)
    sent = events.begin() + events.encode(values)
    return parsed(sent + events.complete(finish_reason, Usage(7, 2, 3), 1_700_000_000))


def test_text_opens_and_closes_one_item_and_one_part() -> None:
    events = stream(OutputTextDelta("Hel"), OutputTextDelta("lo"))

    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[2]["item"] == {
        "type": "message",
        "id": "msg_" + "ab" * 16,
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    place = {"item_id": "msg_" + "ab" * 16, "output_index": 0, "content_index": 0}
    assert events[4] == {
        "type": "response.output_text.delta", **place, "delta": "Hel", "logprobs": [],
    }  # fmt: skip
    assert events[6]["text"] == "Hello"
    assert events[7]["part"] == TEXT
    last = events[-1]["response"]
    assert last["output"] == [events[-2]["item"]]
    assert last["output"][0]["content"] == [TEXT]
    assert last["completed_at"] == 1_700_000_000
    assert last["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }


def test_reasoning_is_an_item_before_the_message() -> None:
    events = stream(ReasoningText("Hm."), OutputTextDelta("Hello"))

    reasoning, message = events[-1]["response"]["output"]
    assert reasoning == {
        "type": "reasoning",
        "id": "rs_" + "ab" * 16,
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    assert message["id"] == "msg_" + "ab" * 16 + "_1"
    kinds = [event["type"] for event in events]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")


def test_calls_are_items_with_their_arguments() -> None:
    events = stream(
        OutputTextDelta("Let me see."),
        ToolCallArguments("call_a", "weather", ""),
        ToolCallArguments("call_b", "time", '{"z":'),
        ToolCallArguments("call_b", "time", "1}"),
        shows_calls=True,
    )

    _, first, second = events[-1]["response"]["output"]
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", "{}")
    assert (second["id"], second["arguments"]) == ("fc_" + "ab" * 16 + "_2", '{"z":1}')
    assert {first["status"], second["status"]} == {"completed"}
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == events[-1]["response"]["output"]
    deltas = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert [event["delta"] for event in deltas] == ['{"z":', "1}"]


def test_calls_of_the_agents_own_tools_are_not_shown() -> None:
    events = stream(
        ToolCallArguments("call_a", "weather", "{}"), StepStarted(2), OutputTextDelta("Hello")
    )

    (message,) = events[-1]["response"]["output"]
    assert message["type"] == "message"


def test_answer_that_is_cut_off_is_incomplete() -> None:
    events = stream(OutputTextDelta("Hello"), finish_reason="length")

    last = events[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"] == [events[-2]["item"]]
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["completed_at"] is None


def test_failure_closes_what_is_open_and_says_why() -> None:
    events = ResponseEvents(HEAD, shows_calls=False)

    frames = parsed(events.begin() + events.encode([OutputTextDelta("Hello")]) + events.fail(ERROR))

    assert [frame["type"] for frame in frames][-2:] == [
        "response.output_item.done",
        "response.failed",
    ]
    last = frames[-1]["response"]
    assert last["error"] == {"code": "server_error", "message": "It broke."}
    assert last["output"][0]["status"] == "incomplete"
