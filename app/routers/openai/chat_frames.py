"""The dialect of chat completions: from a turn's event values to chunks, and to one answer.

Pure: it knows no turn, no clock and no connection. The order of chunks is the one that OpenAI's
clients were seen to need: the role first, text and calls as they come, one `finish_reason`, usage
if it was asked for, and `[DONE]`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from app.core.value_objects import value_object
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    ToolCallArguments,
)
from app.services.turns.parts import Part, ReasoningPart, ToolCallPart
from app.services.turns.records import Usage

DONE = b"data: [DONE]\n\n"
PING = b": ping\n"
"""One newline: with a blank line behind it, an SDK reads an empty event."""


@value_object(frozen=True, slots=True)
class CompletionHead:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    """Unix time in seconds."""
    model: str
    """As the request named it."""

    def fields(self, kind: str) -> dict[str, Any]:
        """Return the first fields of an object of the kind `kind`."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class ChatCompletionChunks:
    """Encodes one stream. Each method returns frames; they are sent in the order of the calls."""

    def __init__(self, head: CompletionHead, *, shows_usage: bool, shows_calls: bool) -> None:
        """`shows_calls`: the tools are the caller's own, so that the caller is told of calls."""
        self._shows_usage = shows_usage
        self._shows_calls = shows_calls
        self._calls: dict[str, int] = {}
        """The places of the calls, by their ids."""
        start = head.fields("chat.completion.chunk") | {
            "service_tier": "default",
            "system_fingerprint": None,
        }
        self._start = orjson.dumps(start)[:-1]

    def begin(self) -> bytes:
        """Return the first frame."""
        return self._chunk({"role": "assistant", "content": ""})

    def encode(self, values: Iterable[EventValue]) -> bytes:
        """Return the frames of events; empty where they have nothing that clients are shown."""
        return b"".join([self._encode(value) for value in values])

    def complete(self, finish_reason: str | None, usage: Usage) -> bytes:
        """Return the last frames of a complete answer."""
        frames = self._chunk({}, finish_reason_of(finish_reason, has_calls=bool(self._calls)))
        if self._shows_usage:
            encoded = orjson.dumps(usage_fields(usage))
            frames += b"data: " + self._start + b',"choices":[],"usage":' + encoded + b"}\n\n"
        return frames + DONE

    @staticmethod
    def fail(error: dict[str, Any]) -> bytes:
        """Return the last frames of an answer that broke off; there is no finish reason."""
        return b"data: " + orjson.dumps(error) + b"\n\n" + DONE

    def _encode(self, value: EventValue) -> bytes:
        if isinstance(value, OutputTextDelta):
            return self._chunk({"content": value.delta})
        if isinstance(value, ReasoningText):
            return self._chunk({"reasoning_content": value.delta})
        if isinstance(value, ToolCallArguments) and self._shows_calls:
            return self._encode_call(value)
        return b""

    def _encode_call(self, value: ToolCallArguments) -> bytes:
        frames = b""
        place = self._calls.get(value.call_id)
        if place is None:
            place = self._calls[value.call_id] = len(self._calls)
            function: dict[str, Any] = {"name": value.name, "arguments": ""}
            call = {"index": place, "id": value.call_id, "type": "function", "function": function}
            frames = self._chunk({"tool_calls": [call]})
        if value.delta:
            piece = {"index": place, "function": {"arguments": value.delta}}
            frames += self._chunk({"tool_calls": [piece]})
        return frames

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        end = b',"usage":null}\n\n' if self._shows_usage else b"}\n\n"
        return b"".join((b"data: ", self._start, b',"choices":[', orjson.dumps(choice), b"]", end))


def completion(  # noqa: PLR0913  # what an answer is made of
    head: CompletionHead,
    text: str,
    parts: Sequence[Part] | None,
    finish_reason: str | None,
    usage: Usage,
    *,
    shows_calls: bool,
) -> dict[str, Any]:
    """Return the whole answer as one object."""
    calls = [part for part in parts or () if isinstance(part, ToolCallPart)] if shows_calls else []
    reasoning = [part.text for part in parts or () if isinstance(part, ReasoningPart)]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text if text or not calls else None,
        "refusal": None,
        "annotations": [],
    }
    if reasoning:
        message["reasoning_content"] = "".join(reasoning)
    if calls:
        message["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for call in calls
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finish_reason_of(finish_reason, has_calls=bool(calls)),
    }
    return head.fields("chat.completion") | {
        "service_tier": "default",
        "system_fingerprint": None,
        "choices": [choice],
        "usage": usage_fields(usage),
    }


def finish_reason_of(finish_reason: str | None, *, has_calls: bool) -> str:
    """Return the finish reason as clients know it: calls of theirs count more than the model's."""
    if has_calls:
        return "tool_calls"
    return finish_reason if finish_reason in {"length", "content_filter"} else "stop"


def usage_fields(usage: Usage) -> dict[str, Any]:
    """Return token counts with OpenAI's names."""
    prompt, completion_tokens = usage.prompt_tokens or 0, usage.completion_tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }
