"""The dialect of chat completions as a pure function: events in, frames out."""

from typing import Any

import orjson

from app.routers.openai.chat_frames import (
    ChatCompletionChunks,
    CompletionHead,
    completion,
    finish_reason_of,
)
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    StepStarted,
    ToolCallArguments,
    TurnInProgress,
)
from app.services.turns.parts import ReasoningPart, TextPart, ToolCallPart
from app.services.turns.records import Usage

HEAD = CompletionHead("chatcmpl-1", 1_700_000_000, "agent-ada")
USAGE = Usage(7, 2, 3)
USAGE_FIELDS = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def stream(
    *values: EventValue,
    finish_reason: str = "stop",
    shows_usage: bool = False,
    shows_calls: bool = False,
) -> list[Any]:
    """Return the data of a whole stream's frames; `[DONE]` is left out, and is the last."""
    chunks = ChatCompletionChunks(HEAD, shows_usage=shows_usage, shows_calls=shows_calls)
    sent = chunks.begin() + chunks.encode(values) + chunks.complete(finish_reason, USAGE)
    *frames, done, rest = sent.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(frame.startswith(b"data: ") and b"\n" not in frame for frame in frames)
    return [orjson.loads(frame.removeprefix(b"data: ")) for frame in frames]


def deltas(frames: list[Any]) -> list[Any]:
    return [frame["choices"][0]["delta"] for frame in frames if frame["choices"]]


def test_stream_has_the_role_first_and_one_finish_reason_at_its_end() -> None:
    frames = stream(TurnInProgress(1), OutputTextDelta("Hel"), OutputTextDelta("lo"))

    assert deltas(frames) == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    reasons = [frame["choices"][0]["finish_reason"] for frame in frames]
    assert reasons == [None, None, None, "stop"]
    assert frames[1] == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "agent-ada",
        "service_tier": "default",
        "system_fingerprint": None,
        "choices": [
            {"index": 0, "delta": {"content": "Hel"}, "logprobs": None, "finish_reason": None}
        ],
    }


def test_usage_comes_last_and_alone_where_it_was_asked_for() -> None:
    *frames, last = stream(OutputTextDelta("Hi"), shows_usage=True)

    assert [frame["usage"] for frame in frames] == [None] * len(frames)
    assert (last["choices"], last["usage"]) == ([], USAGE_FIELDS)


def test_reasoning_is_not_content() -> None:
    frames = stream(ReasoningText("Hm."), OutputTextDelta("Yes"))

    assert deltas(frames)[1:3] == [{"reasoning_content": "Hm."}, {"content": "Yes"}]


def test_calls_are_numbered_and_their_arguments_follow_in_pieces() -> None:
    frames = stream(
        ToolCallArguments("call_a", "weather", ""),
        ToolCallArguments("call_a", "weather", '{"city":'),
        ToolCallArguments("call_b", "time", "{}"),
        ToolCallArguments("call_a", "weather", '"Bern"}'),
        shows_calls=True,
    )

    assert [delta["tool_calls"][0] for delta in deltas(frames)[1:-1]] == [
        {
            "index": 0,
            "id": "call_a",
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        },
        {"index": 0, "function": {"arguments": '{"city":'}},
        {
            "index": 1,
            "id": "call_b",
            "type": "function",
            "function": {"name": "time", "arguments": ""},
        },
        {"index": 1, "function": {"arguments": "{}"}},
        {"index": 0, "function": {"arguments": '"Bern"}'}},
    ]
    assert frames[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_of_the_agents_own_tools_are_not_shown() -> None:
    frames = stream(
        ToolCallArguments("call_a", "weather", "{}"), StepStarted(2), OutputTextDelta("Sunny")
    )

    assert deltas(frames)[1:-1] == [{"content": "Sunny"}]
    assert frames[-1]["choices"][0]["finish_reason"] == "stop"


def test_failure_is_an_error_without_a_finish_reason() -> None:
    error = {"error": {"message": "It broke.", "type": "server_error", "param": None, "code": "x"}}

    frame, done, rest = ChatCompletionChunks.fail(error).split(b"\n\n")

    assert orjson.loads(frame.removeprefix(b"data: ")) == error
    assert (done, rest) == (b"data: [DONE]", b"")


def test_finish_reasons_are_those_that_clients_know() -> None:
    known = {
        reason: finish_reason_of(reason, has_calls=False)
        for reason in ("stop", "length", "content_filter", "tool_calls", None)
    }

    assert known == {
        "stop": "stop",
        "length": "length",
        "content_filter": "content_filter",
        "tool_calls": "stop",
        None: "stop",
    }
    assert finish_reason_of("stop", has_calls=True) == "tool_calls"


def test_whole_answer_is_one_object() -> None:
    answer = completion(
        HEAD, "Hi", [ReasoningPart("Hm."), TextPart("Hi")], "length", USAGE, shows_calls=False
    )

    assert answer == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "agent-ada",
        "service_tier": "default",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Hi",
                    "refusal": None,
                    "annotations": [],
                    "reasoning_content": "Hm.",
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": USAGE_FIELDS,
    }


def test_whole_answer_with_calls_has_no_content_and_arguments_as_text() -> None:
    calls = [ToolCallPart("call_a", "weather", "", "requested", "")]

    answer = completion(HEAD, "", calls, "tool_calls", USAGE, shows_calls=True)

    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {
            "id": "call_a",
            "type": "function",
            "function": {"name": "weather", "arguments": "{}"},
        }
    ]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
