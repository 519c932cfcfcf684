"""The dialect of the AI SDK's UI message stream: from a turn's event values to its chunks.

Pure: it knows no turn, no clock and no connection. Version 5.0.0 of the SDK refuses every chunk
with a key that it does not know, so chunks have those of 5.0.0 alone; approvals came with 6.
"""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import orjson

from app.routers.ui_streams.dialect import (
    NOTHING_ANSWERED,
    Answered,
    AnswerText,
    parsed,
    question_of,
    without_separator,
)
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    RequiredAction,
    StepStarted,
    ToolCallCompleted,
    ToolCallCreated,
    ToolCallFailed,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnInProgress,
    TurnRequiresAction,
)

DONE = b"data: [DONE]\n\n"
_TEXT, _REASONING = "text", "reasoning"


class UIMessageChunks:
    """Encodes one stream; fulfils `UIDialect`."""

    def __init__(
        self,
        message_id: UUID,
        turn_id: UUID,
        *,
        is_typed: bool = False,
        may_approve: Callable[[RequiredAction], bool] = lambda _: True,
        answered: Answered = NOTHING_ANSWERED,
    ) -> None:
        """`is_typed`: the answer is JSON, which is shown once it is valid.

        `may_approve` tells which approvals the client is asked for.
        """
        self._message_id = str(message_id)
        self._turn_id = str(turn_id)
        self._is_typed = is_typed
        self._may_approve = may_approve
        self._answered = answered
        self._text = AnswerText()
        self._calls: set[str] = set()
        self._part_kind = ""
        """Of the open part; empty without one."""
        self._part_count = 0
        self._delta_start = b""
        self._is_over = False

    def begin(self) -> bytes:
        """Return the first frames."""
        start = {"type": "start", "messageId": self._message_id}
        return _chunk(start) + _chunk({"type": "start-step"})

    def encode(self, values: Sequence[EventValue]) -> bytes:
        """Return the frames of events."""
        return b"".join([self._encode(value) for value in values])

    def end(self) -> bytes:
        """Return the last frames of a stream that the client may continue."""
        return b"" if self._is_over else self._finish({"turnId": self._turn_id})

    def fail(self, code: str, detail: str) -> bytes:
        """Return the last frames of a stream that breaks off."""
        del code  # the client is shown the text alone
        if self._is_over:
            return b""
        self._is_over = True
        return self._close_part() + _chunk({"type": "error", "errorText": detail}) + DONE

    def _encode(self, value: EventValue) -> bytes:
        encode = _ENCODERS.get(type(value))
        return encode(self, value) if encode else b""

    def encode_text(self, value: OutputTextDelta) -> bytes:
        """Encode a piece of the answer."""
        return b"" if self._is_typed else self._text_delta(value.delta)

    def encode_reasoning(self, value: ReasoningText) -> bytes:
        """Encode a piece of what the model thinks aloud."""
        return self._delta(_REASONING, value.delta)

    def begin_attempt(self, _value: TurnInProgress) -> bytes:
        """Begin the answer, or begin it anew."""
        self._text.begin_attempt()
        return self._close_part()

    def begin_step(self, _value: StepStarted) -> bytes:
        """End a step, and begin the next one."""
        ended = _chunk({"type": "finish-step"}) + _chunk({"type": "start-step"})
        return self._close_part() + ended

    def encode_actions(self, value: TurnRequiresAction) -> bytes:
        """Ask for approvals and answers; a tool of the client's just has no output yet."""
        return self._close_part() + b"".join(map(self._ask, value.actions))

    def encode_failure(self, value: TurnFailed) -> bytes:
        """Encode the last event of a failed turn."""
        return self.fail(value.error.code, value.error.detail)

    def encode_cancellation(self, _value: TurnCancelled) -> bytes:
        """Encode the last event of a cancelled turn."""
        self._is_over = True
        return self._close_part() + _chunk({"type": "abort"}) + DONE

    def encode_completion(self, value: TurnCompleted) -> bytes:
        """Encode the last event of a completed turn."""
        rest = value.message.content if self._is_typed else self._text.take_rest()
        frames = self._close_part() + self._delta(_TEXT, rest) if rest else b""
        usage = {
            "inputTokens": value.usage.prompt_tokens or 0,
            "outputTokens": value.usage.completion_tokens or 0,
        }
        return frames + self._finish({"usage": usage, "turnId": self._turn_id})

    def _finish(self, metadata: dict[str, Any]) -> bytes:
        self._is_over = True
        finish = {"type": "finish", "messageMetadata": metadata}
        return self._close_part() + _chunk({"type": "finish-step"}) + _chunk(finish) + DONE

    def _text_delta(self, delta: str) -> bytes:
        text, is_another = self._text.take(delta)
        frames = self._close_part() if is_another else b""
        return frames + self._delta(_TEXT, text)

    def _delta(self, kind: str, delta: str) -> bytes:
        frames = b""
        if self._part_kind != kind:
            delta = without_separator(delta)
            if not delta:
                return b""
            frames = self._close_part()
            self._part_kind = kind
            self._part_count += 1
            part_id = f"{kind}-{self._part_count}"
            frames += _chunk({"type": f"{kind}-start", "id": part_id})
            head = {"type": f"{kind}-delta", "id": part_id}
            self._delta_start = b"data: " + orjson.dumps(head)[:-1] + b',"delta":'
        if not delta:
            return frames
        return b"".join((frames, self._delta_start, orjson.dumps(delta), b"}\n\n"))

    def _close_part(self) -> bytes:
        if not self._part_kind:
            return b""
        kind, self._part_kind = self._part_kind, ""
        return _chunk({"type": f"{kind}-end", "id": f"{kind}-{self._part_count}"})

    def begin_call(self, value: ToolCallCreated) -> bytes:
        """Encode a call of a tool."""
        call_id = str(value.call_id)
        if call_id in self._calls:
            return b""
        self._calls.add(call_id)
        call = {"type": "tool-input-available", "toolCallId": call_id, "toolName": value.name}
        return self._close_part() + _chunk(call | {"input": parsed(value.arguments or "{}")})

    def encode_result(self, value: ToolCallCompleted) -> bytes:
        """Encode the beginning of a call's result."""
        call_id = str(value.call_id)
        if call_id in self._answered.outputs:
            return b""
        result = {"type": "tool-output-available", "toolCallId": call_id}
        return self._close_part() + _chunk(result | {"output": parsed(value.preview)})

    def encode_call_failure(self, value: ToolCallFailed) -> bytes:
        """Encode why a call has no result."""
        call_id = str(value.call_id)
        if call_id in self._answered.outputs:
            return b""
        failure = {"type": "tool-output-error", "toolCallId": call_id}
        return self._close_part() + _chunk(failure | {"errorText": value.error.detail})

    def _ask(self, action: RequiredAction) -> bytes:
        call_id = str(action.call_id)
        if action.action == "approval" and self._may_approve(action):
            chunk = {"type": "tool-approval-request", "approvalId": call_id}
            return _chunk(chunk | {"toolCallId": call_id})
        if action.action == "answer":
            data = {"callId": call_id} | question_of(action)
            return _chunk({"type": "data-question", "id": call_id, "data": data})
        return b""


_ENCODERS: dict[type, Callable[[UIMessageChunks, Any], bytes]] = {
    OutputTextDelta: UIMessageChunks.encode_text,
    ReasoningText: UIMessageChunks.encode_reasoning,
    TurnInProgress: UIMessageChunks.begin_attempt,
    StepStarted: UIMessageChunks.begin_step,
    ToolCallCreated: UIMessageChunks.begin_call,
    ToolCallCompleted: UIMessageChunks.encode_result,
    ToolCallFailed: UIMessageChunks.encode_call_failure,
    TurnRequiresAction: UIMessageChunks.encode_actions,
    TurnCompleted: UIMessageChunks.encode_completion,
    TurnFailed: UIMessageChunks.encode_failure,
    TurnCancelled: UIMessageChunks.encode_cancellation,
}


def _chunk(fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(fields) + b"\n\n"
