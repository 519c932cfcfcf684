"""The dialect of AG-UI 1.0: from a turn's event values to the protocol's events.

Pure: it knows no turn, no clock and no connection. Its client parses every `data:` line as JSON,
so that there is no `[DONE]`, and throws where a message is open when the run ends.
"""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import orjson

from app.routers.ui_streams.dialect import (
    NOTHING_ANSWERED,
    Answered,
    AnswerText,
    question_of,
    without_separator,
)
from app.services.turns.events import (
    EventValue,
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
_TEXT, _REASONING = "TEXT", "REASONING"
_APPROVAL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["approved"],
}


class AgUiEvents:
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
        self._is_typed = is_typed
        self._may_approve = may_approve
        self._answered = answered
        self._has_own_tools = has_own_tools
        self._open_call = ""
        """The call whose arguments are being sent; empty without one."""
        self._text = AnswerText()
        self._calls: set[str] = set()
        self._pending: list[str] = []
        self._interrupts: list[dict[str, Any]] = []
        self._open_kind = ""
        """Of the open message; empty without one."""
        self._open_id = ""
        self._message_count = 0
        self._delta_start = b""
        self._is_over = False

    def begin(self) -> bytes:
        """Return the first frame."""
        return _event("RUN_STARTED", self._run | {"protocolVersion": _VERSION})

    def encode(self, values: Sequence[EventValue]) -> bytes:
        """Return the frames of events."""
        return b"".join([self._encode(value) for value in values])

    def end(self) -> bytes:
        """Return the last frames of a run that waits for its client."""
        if self._is_over:
            return b""
        if self._interrupts:
            return self._finish({"type": "interrupt", "interrupts": self._interrupts})
        pending = {"pendingToolCallIds": self._pending} if self._pending else {}
        return self._finish({"type": "success"} | pending)

    def fail(self, code: str, detail: str) -> bytes:
        """Return the last frames of a run that failed."""
        if self._is_over:
            return b""
        self._is_over = True
        return self._close_message() + _event("RUN_ERROR", {"message": detail, "code": code})

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
        self._pending.clear()
        self._interrupts.clear()
        return self._close_message()

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
        return self._close_message()

    def encode_completion(self, value: TurnCompleted) -> bytes:
        """Encode the last event of a completed turn."""
        rest = value.message.content if self._is_typed else self._text.take_rest()
        frames = self._close_message() + self._delta(_TEXT, rest) if rest else b""
        if self._has_own_tools and self._pending:
            return frames + self._finish({"type": "success", "pendingToolCallIds": self._pending})
        return frames + self._finish(None)

    def encode_failure(self, value: TurnFailed) -> bytes:
        """Encode the last event of a failed turn."""
        return self.fail(value.error.code, value.error.detail)

    def encode_cancellation(self, _value: TurnCancelled) -> bytes:
        """Encode the last event of a cancelled turn."""
        return self._finish({"type": "cancelled"})

    def _finish(self, outcome: dict[str, Any] | None) -> bytes:
        self._is_over = True
        fields = {"outcome": outcome} if outcome else {}
        return self._close_message() + _event("RUN_FINISHED", self._run | fields)

    def _text_delta(self, delta: str) -> bytes:
        text, is_another = self._text.take(delta)
        frames = self._close_message() if is_another else b""
        return frames + self._delta(_TEXT, text)

    def _delta(self, kind: str, delta: str) -> bytes:
        frames = b""
        if self._open_kind != kind:
            delta = without_separator(delta)
            if not delta:
                return b""
            frames = self._close_message() + self._open_message(kind)
        if not delta:  # its client refuses an empty one
            return frames
        return b"".join((frames, self._delta_start, orjson.dumps(delta), b"}\n\n"))

    def _open_message(self, kind: str) -> bytes:
        self._message_count += 1
        number = "" if self._message_count == 1 else f"-{self._message_count}"
        self._open_kind, self._open_id = kind, self._message_id + number
        message: dict[str, Any] = {"messageId": self._open_id}
        name = "TEXT_MESSAGE" if kind == _TEXT else "REASONING_MESSAGE"
        head = {"type": f"{name}_CONTENT"} | message
        self._delta_start = b"data: " + orjson.dumps(head)[:-1] + b',"delta":'
        if kind == _TEXT:
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
            frames = self._close_message()
            self._open_call = value.call_id
            self._pending.append(value.call_id)
            frames += _event("TOOL_CALL_START", call | {"toolCallName": value.name})
        if value.delta:
            frames += _event("TOOL_CALL_ARGS", call | {"delta": value.delta})
        return frames

    def _close_message(self) -> bytes:
        if self._open_call:
            call_id, self._open_call = self._open_call, ""
            return _event("TOOL_CALL_END", {"toolCallId": call_id})
        if not self._open_kind:
            return b""
        kind, self._open_kind = self._open_kind, ""
        message = {"messageId": self._open_id}
        if kind == _TEXT:
            return _event("TEXT_MESSAGE_END", message)
        return _event("REASONING_MESSAGE_END", message) + _event("REASONING_END", message)

    def begin_call(self, value: ToolCallCreated) -> bytes:
        """Encode a call of a tool, with its arguments in one piece."""
        call_id = str(value.call_id)
        if call_id in self._calls:
            return b""
        self._calls.add(call_id)
        call = {"toolCallId": call_id}
        return (
            self._close_message()
            + _event("TOOL_CALL_START", call | {"toolCallName": value.name})
            + _event("TOOL_CALL_ARGS", call | {"delta": value.arguments or "{}"})
            + _event("TOOL_CALL_END", call)
        )

    def _result(self, call_id: UUID, content: str) -> bytes:
        if str(call_id) in self._answered.outputs:
            return b""
        result = {"messageId": f"{call_id}-result", "toolCallId": str(call_id)}
        event = _event("TOOL_CALL_RESULT", result | {"content": content, "role": "tool"})
        return self._close_message() + event

    def _note(self, action: RequiredAction) -> None:
        """Note what the client must do: run a tool of its own, or answer an interrupt."""
        call_id = str(action.call_id)
        if call_id in self._answered.actions:
            return
        if action.action == "output":
            self._pending.append(call_id)
            return
        if action.action == "approval" and not self._may_approve(action):
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


_ENCODERS: dict[type, Callable[[AgUiEvents, Any], bytes]] = {
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
