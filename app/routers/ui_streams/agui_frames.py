"""The dialect of AG-UI 1.0: from a turn's event values to the protocol's events.

Pure: it knows no turn, no clock and no connection. Its client parses every `data:` line as JSON,
so that there is no `[DONE]`, and throws where a message is open when the run ends.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import orjson
from typing_extensions import override

from app.routers.ui_streams.dialect import (
    NOTHING_ANSWERED,
    TEXT,
    Answered,
    AnswerFrames,
    question_of,
    start_of_delta,
)
from app.services.turns.events import (
    OutputTextDelta,
    ReasoningText,
    RequiredAction,
    ToolCallArguments,
    ToolCallCompleted,
    ToolCallCreated,
    ToolCallFailed,
    TurnCancelled,
    TurnCompleted,
    TurnFailed,
    TurnInProgress,
    TurnRequiresAction,
)

_VERSION = "1.0"
_APPROVAL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["approved"],
}


class AgUiEvents(AnswerFrames):
    """Encodes one stream; fulfils `UIDialect`."""

    def __init__(  # noqa: PLR0913  # what a run is, and what its client may be asked
        self,
        thread_id: str,
        run_id: str,
        message_id: UUID,
        *,
        is_typed: bool = False,
        may_approve: Callable[[RequiredAction], bool] = lambda _: True,
        answered: Answered = NOTHING_ANSWERED,
        has_own_tools: bool = False,
    ) -> None:
        """As `UIMessageChunks`. `has_own_tools`: the run brought tools, whose calls end it."""
        self._run = {"threadId": thread_id, "runId": run_id}
        self._message_id = str(message_id)
        super().__init__(is_typed=is_typed, may_approve=may_approve, answered=answered)
        self._has_own_tools = has_own_tools
        self._open_call = ""
        """The call whose arguments are being sent; empty without one."""
        self._pending: list[str] = []
        self._interrupts: list[dict[str, Any]] = []
        self._open_id = ""

    def begin(self) -> bytes:
        """Return the first frame."""
        return _event("RUN_STARTED", self._run | {"protocolVersion": _VERSION})

    def end(self) -> bytes:
        """Return the last frames of a run that waits for its client."""
        if self.is_over:
            return b""
        if self._interrupts:
            return self._finish({"type": "interrupt", "interrupts": self._interrupts})
        pending = {"pendingToolCallIds": self._pending} if self._pending else {}
        return self._finish({"type": "success"} | pending)

    @override
    def fail(self, code: str, detail: str) -> bytes:
        """Return the last frames of a run that failed."""
        if self.is_over:
            return b""
        self.is_over = True
        return self.close_part() + _event("RUN_ERROR", {"message": detail, "code": code})

    def begin_attempt(self, _value: TurnInProgress) -> bytes:
        """Begin the answer, or begin it anew."""
        self.text.begin_attempt()
        self._pending.clear()
        self._interrupts.clear()
        return self.close_part()

    def encode_result(self, value: ToolCallCompleted) -> bytes:
        """Encode the beginning of a call's result."""
        return self._result(value.call_id, value.preview)

    def encode_call_failure(self, value: ToolCallFailed) -> bytes:
        """Encode why a call has no result."""
        return self._result(value.call_id, value.error.detail)

    def note_actions(self, value: TurnRequiresAction) -> bytes:
        """Note what the client must do before the turn goes on; `end` tells it."""
        for action in value.actions:
            self._note(action)
        return self.close_part()

    def encode_completion(self, value: TurnCompleted) -> bytes:
        """Encode the last event of a completed turn."""
        frames = self.rest_of(value)
        if self._has_own_tools and self._pending:
            return frames + self._finish({"type": "success", "pendingToolCallIds": self._pending})
        return frames + self._finish(None)

    def encode_cancellation(self, _value: TurnCancelled) -> bytes:
        """Encode the last event of a cancelled turn."""
        return self._finish({"type": "cancelled"})

    def _finish(self, outcome: dict[str, Any] | None) -> bytes:
        self.is_over = True
        fields = {"outcome": outcome} if outcome else {}
        return self.close_part() + _event("RUN_FINISHED", self._run | fields)

    @override
    def open_part(self, kind: str) -> bytes:
        number = "" if self.part_count == 1 else f"-{self.part_count}"
        self._open_id = self._message_id + number
        message: dict[str, Any] = {"messageId": self._open_id}
        name = "TEXT_MESSAGE" if kind == TEXT else "REASONING_MESSAGE"
        self.delta_start = start_of_delta({"type": f"{name}_CONTENT"} | message)
        if kind == TEXT:
            return _event(f"{name}_START", message | {"role": "assistant"})
        frames = _event("REASONING_START", message)
        return frames + _event(f"{name}_START", message | {"role": "reasoning"})

    def encode_arguments(self, value: ToolCallArguments) -> bytes:
        """Encode a piece of a call of the client's own tools, as the model writes it."""
        if not self._has_own_tools:
            return b""
        frames = b""
        call = {"toolCallId": value.call_id}
        if self._open_call != value.call_id:
            frames = self.close_part()
            self._open_call = value.call_id
            self._pending.append(value.call_id)
            frames += _event("TOOL_CALL_START", call | {"toolCallName": value.name})
        if value.delta:
            frames += _event("TOOL_CALL_ARGS", call | {"delta": value.delta})
        return frames

    @override
    def close_part(self) -> bytes:
        if self._open_call:
            call_id, self._open_call = self._open_call, ""
            return _event("TOOL_CALL_END", {"toolCallId": call_id})
        if not self.open_kind:
            return b""
        kind, self.open_kind = self.open_kind, ""
        message = {"messageId": self._open_id}
        if kind == TEXT:
            return _event("TEXT_MESSAGE_END", message)
        return _event("REASONING_MESSAGE_END", message) + _event("REASONING_END", message)

    def begin_call(self, value: ToolCallCreated) -> bytes:
        """Encode a call of a tool, with its arguments in one piece."""
        call_id = str(value.call_id)
        if not self.is_new_call(call_id):
            return b""
        call = {"toolCallId": call_id}
        return (
            self.close_part()
            + _event("TOOL_CALL_START", call | {"toolCallName": value.name})
            + _event("TOOL_CALL_ARGS", call | {"delta": value.arguments or "{}"})
            + _event("TOOL_CALL_END", call)
        )

    def _result(self, call_id: UUID, content: str) -> bytes:
        if str(call_id) in self.answered.outputs:
            return b""
        result = {"messageId": f"{call_id}-result", "toolCallId": str(call_id)}
        event = _event("TOOL_CALL_RESULT", result | {"content": content, "role": "tool"})
        return self.close_part() + event

    def _note(self, action: RequiredAction) -> None:
        """Note what the client must do: run a tool of its own, or answer an interrupt."""
        call_id = str(action.call_id)
        if call_id in self.answered.actions:
            return
        if action.action == "output":
            self._pending.append(call_id)
            return
        if action.action == "approval" and not self.may_approve(action):
            return
        interrupt: dict[str, Any] = {"id": call_id, "toolCallId": call_id}
        if action.expires_at:
            interrupt["expiresAt"] = action.expires_at.isoformat()
        if action.action == "approval":
            interrupt |= {"reason": "approval", "responseSchema": _APPROVAL_SCHEMA}
        else:
            question = question_of(action)
            interrupt |= {"reason": "question", "message": question.get("message") or ""}
            if form := question.get("form"):
                interrupt["responseSchema"] = form
        self._interrupts.append(interrupt)


AgUiEvents.encoders = {
    OutputTextDelta: AgUiEvents.encode_text,
    ReasoningText: AgUiEvents.encode_reasoning,
    TurnInProgress: AgUiEvents.begin_attempt,
    ToolCallArguments: AgUiEvents.encode_arguments,
    ToolCallCreated: AgUiEvents.begin_call,
    ToolCallCompleted: AgUiEvents.encode_result,
    ToolCallFailed: AgUiEvents.encode_call_failure,
    TurnRequiresAction: AgUiEvents.note_actions,
    TurnCompleted: AgUiEvents.encode_completion,
    TurnFailed: AgUiEvents.encode_failure,
    TurnCancelled: AgUiEvents.encode_cancellation,
}


def _event(kind: str, fields: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps({"type": kind} | fields) + b"\n\n"
