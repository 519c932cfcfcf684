"""The dialect of the AI SDK's UI message stream: from a turn's event values to its chunks.

Pure: it knows no turn, no clock and no connection. Version 5.0.0 of the SDK refuses every chunk
with a key that it does not know, so chunks have those of 5.0.0 alone; approvals came with 6.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import orjson
from typing_extensions import override

from app.routers.ui_streams.dialect import (
    NOTHING_ANSWERED,
    Answered,
    AnswerFrames,
    parsed,
    question_of,
    start_of_delta,
)
from app.services.turns.events import (
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


class UIMessageChunks(AnswerFrames):
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
        """As `AnswerFrames`; the ids are those of the answer and of its turn."""
        super().__init__(is_typed=is_typed, may_approve=may_approve, answered=answered)
        self._message_id = str(message_id)
        self._turn_id = str(turn_id)

    def begin(self) -> bytes:
        """Return the first frames."""
        start = {"type": "start", "messageId": self._message_id}
        return _chunk(start) + _chunk({"type": "start-step"})

    def end(self) -> bytes:
        """Return the last frames of a stream that the client may continue."""
        return b"" if self.is_over else self._finish({"turnId": self._turn_id})

    @override
    def fail(self, code: str, detail: str) -> bytes:
        """Return the last frames of a stream that breaks off."""
        del code  # the client is shown the text alone
        if self.is_over:
            return b""
        self.is_over = True
        return self.close_part() + _chunk({"type": "error", "errorText": detail}) + DONE

    def begin_attempt(self, _value: TurnInProgress) -> bytes:
        """Begin the answer, or begin it anew."""
        self.text.begin_attempt()
        return self.close_part()

    def begin_step(self, _value: StepStarted) -> bytes:
        """End a step, and begin the next one."""
        ended = _chunk({"type": "finish-step"}) + _chunk({"type": "start-step"})
        return self.close_part() + ended

    def encode_actions(self, value: TurnRequiresAction) -> bytes:
        """Ask for approvals and answers; a tool of the client's just has no output yet."""
        return self.close_part() + b"".join(map(self._ask, value.actions))

    def encode_cancellation(self, _value: TurnCancelled) -> bytes:
        """Encode the last event of a cancelled turn."""
        self.is_over = True
        return self.close_part() + _chunk({"type": "abort"}) + DONE

    def encode_completion(self, value: TurnCompleted) -> bytes:
        """Encode the last event of a completed turn."""
        frames = self.rest_of(value)
        usage = {
            "inputTokens": value.usage.prompt_tokens or 0,
            "outputTokens": value.usage.completion_tokens or 0,
        }
        return frames + self._finish({"usage": usage, "turnId": self._turn_id})

    def _finish(self, metadata: dict[str, Any]) -> bytes:
        self.is_over = True
        finish = {"type": "finish", "messageMetadata": metadata}
        return self.close_part() + _chunk({"type": "finish-step"}) + _chunk(finish) + DONE

    @override
    def open_part(self, kind: str) -> bytes:
        part_id = f"{kind}-{self.part_count}"
        self.delta_start = start_of_delta({"type": f"{kind}-delta", "id": part_id})
        return _chunk({"type": f"{kind}-start", "id": part_id})

    @override
    def close_part(self) -> bytes:
        if not self.open_kind:
            return b""
        kind, self.open_kind = self.open_kind, ""
        return _chunk({"type": f"{kind}-end", "id": f"{kind}-{self.part_count}"})

    def begin_call(self, value: ToolCallCreated) -> bytes:
        """Encode a call of a tool."""
        call_id = str(value.call_id)
        if not self.is_new_call(call_id):
            return b""
        call = {"type": "tool-input-available", "toolCallId": call_id, "toolName": value.name}
        return self.close_part() + _chunk(call | {"input": parsed(value.arguments or "{}")})

    def encode_result(self, value: ToolCallCompleted) -> bytes:
        """Encode the beginning of a call's result."""
        call_id = str(value.call_id)
        if call_id in self.answered.outputs:
            return b""
        result = {"type": "tool-output-available", "toolCallId": call_id}
        return self.close_part() + _chunk(result | {"output": parsed(value.preview)})

    def encode_call_failure(self, value: ToolCallFailed) -> bytes:
        """Encode why a call has no result."""
        call_id = str(value.call_id)
        if call_id in self.answered.outputs:
            return b""
        failure = {"type": "tool-output-error", "toolCallId": call_id}
        return self.close_part() + _chunk(failure | {"errorText": value.error.detail})

    def _ask(self, action: RequiredAction) -> bytes:
        call_id = str(action.call_id)
        if action.action == "approval" and self.may_approve(action):
            chunk = {"type": "tool-approval-request", "approvalId": call_id}
            return _chunk(chunk | {"toolCallId": call_id})
        if action.action == "answer":
            data = {"callId": call_id} | question_of(action)
            return _chunk({"type": "data-question", "id": call_id, "data": data})
        return b""


UIMessageChunks.encoders = {
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
