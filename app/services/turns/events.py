"""The events of a turn: one value class for each type, numbered and in order.

A value is JSON once, for storage and the native API; dialects and OpenAPI read the classes.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar, TypeAlias, cast
from uuid import UUID

import orjson

from app.core.value_objects import value_object
from app.models import MessageStatus, Modality, Role
from app.services.turns.records import Usage


class EventType(StrEnum):
    """Event types; the values are the names in the event stream."""

    CREATED = "turn.created"
    QUEUED = "turn.queued"
    IN_PROGRESS = "turn.in_progress"
    TRANSCRIPT_DELTA = "input_transcript.delta"
    TRANSCRIPT = "input_transcript.done"
    TEXT = "output_text.delta"
    REASONING = "reasoning.delta"
    STEP = "step.started"
    CALL_DELTA = "tool_call.delta"
    CALL_CREATED = "tool_call.created"
    CALL_STARTED = "tool_call.started"
    CALL_PROGRESS = "tool_call.progress"
    CALL_COMPLETED = "tool_call.completed"
    CALL_FAILED = "tool_call.failed"
    ACTION_REQUESTED = "action.requested"
    ACTION_RESOLVED = "action.resolved"
    REQUIRES_ACTION = "turn.requires_action"
    AUDIO = "audio.clip"
    COMPLETED = "turn.completed"
    FAILED = "turn.failed"
    CANCELLED = "turn.cancelled"


_NAMES = {kind: kind.value.encode() for kind in EventType}
TERMINAL = frozenset((EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED))
_LAST = TERMINAL | {EventType.REQUIRES_ACTION}


@value_object(frozen=True, slots=True)
class TurnCreated:
    """The user message and the turn are stored."""

    type: ClassVar = EventType.CREATED
    turn_id: UUID
    session_id: UUID
    user_message_id: UUID
    message_id: UUID
    """Of the answer."""


@value_object(frozen=True, slots=True)
class TurnQueued:
    """The turn waits for another turn of its session."""

    type: ClassVar = EventType.QUEUED


@value_object(frozen=True, slots=True)
class TurnInProgress:
    """The turn runs. Above attempt 1, and where it comes again, the answer begins anew."""

    type: ClassVar = EventType.IN_PROGRESS
    attempt: int


@value_object(frozen=True, slots=True)
class InputTranscriptDelta:
    """The next piece of the transcript, where the provider streams it."""

    type: ClassVar = EventType.TRANSCRIPT_DELTA
    delta: str


@value_object(frozen=True, slots=True)
class InputTranscriptDone:
    """The transcript of the recording; `language` is `null` where it is not known."""

    type: ClassVar = EventType.TRANSCRIPT
    text: str
    language: str | None


@value_object(frozen=True, slots=True)
class OutputTextDelta:
    """The next piece of the answer."""

    type: ClassVar = EventType.TEXT
    delta: str


@value_object(frozen=True, slots=True)
class ReasoningText:
    """The next piece of what the model thinks aloud; it is no part of the answer."""

    type: ClassVar = EventType.REASONING
    delta: str


@value_object(frozen=True, slots=True)
class StepStarted:
    """The model is asked again, with the results of its calls. The first step is not announced."""

    type: ClassVar = EventType.STEP
    step: int


@value_object(frozen=True, slots=True)
class ToolCallArguments:
    """The next piece of a call's arguments, as the model writes them."""

    type: ClassVar = EventType.CALL_DELTA
    call_id: str
    """The id that the model gave the call."""
    name: str
    delta: str


@value_object(frozen=True, slots=True)
class ToolCallCreated:
    """The model calls a tool."""

    type: ClassVar = EventType.CALL_CREATED
    call_id: UUID
    step: int
    index: int
    name: str
    kind: str | None
    """`null` where the agent has no tool of that name."""
    arguments: str


@value_object(frozen=True, slots=True)
class ToolCallStarted:
    """A call is run."""

    type: ClassVar = EventType.CALL_STARTED
    call_id: UUID
    attempt: int


@value_object(frozen=True, slots=True)
class ToolCallProgress:
    """How far a call is, as its MCP server says."""

    type: ClassVar = EventType.CALL_PROGRESS
    call_id: UUID
    progress: float
    total: float | None
    message: str | None


@value_object(frozen=True, slots=True)
class ToolCallCompleted:
    """A call has a result; `preview` is its beginning, up to 2 KB."""

    type: ClassVar = EventType.CALL_COMPLETED
    call_id: UUID
    status: str
    preview: str
    duration_ms: float | None
    files: list[str] = field(default_factory=list[str])


@value_object(frozen=True, slots=True)
class ToolCallProblem:
    """Why a call has no result; `code` is one of the documented codes of calls."""

    code: str
    detail: str


@value_object(frozen=True, slots=True)
class ToolCallFailed:
    """A call ended without a result; the model is told."""

    type: ClassVar = EventType.CALL_FAILED
    call_id: UUID
    status: str
    error: ToolCallProblem


@value_object(frozen=True, slots=True)
class RequiredAction:
    """What somebody must do before the turn goes on: `POST /tool-calls/{call_id}/resolution`."""

    call_id: UUID
    action: str
    """`approval` of a call, `output` of a tool that the caller's code runs, or an `answer`."""
    name: str
    arguments: str
    by: str
    """Who may act: `operator` or `user`."""
    expires_at: datetime | None
    question: dict[str, Any] | None = None
    """What is asked: `message`, and `form` (a JSON Schema) or `url`."""


@value_object(frozen=True, slots=True)
class ActionRequested:
    """Somebody must act before the turn goes on."""

    type: ClassVar = EventType.ACTION_REQUESTED
    action: RequiredAction


@value_object(frozen=True, slots=True)
class ActionResolved:
    """An action was taken, or its time is over."""

    type: ClassVar = EventType.ACTION_RESOLVED
    call_id: UUID
    decision: str
    by: str


@value_object(frozen=True, slots=True)
class TurnRequiresAction:
    """The turn waits until all actions are taken. It ends the stream, and the turn lives on."""

    type: ClassVar = EventType.REQUIRES_ACTION
    actions: list[RequiredAction]


@value_object(frozen=True, slots=True)
class AudioClip:
    """A spoken sentence. `start_ms` counts from the beginning of the answer's audio."""

    type: ClassVar = EventType.AUDIO
    index: int
    text: str
    start_ms: int
    duration_ms: int
    mp3: str
    """Base64 of a complete short MP3."""


@value_object(frozen=True, slots=True)
class AnswerMessage:
    """The assistant's message as it is stored; `heard_content` is what it was at the turn's end."""

    id: UUID
    session_id: UUID
    turn_id: UUID
    seq: int
    role: Role
    content: str
    heard_content: str | None
    status: MessageStatus
    modality: Modality
    created_at: datetime


@value_object(frozen=True, slots=True)
class TurnProblem:
    """Why a turn failed; `code` is one of the documented error codes."""

    code: str
    title: str
    detail: str


@value_object(frozen=True, slots=True)
class TurnCompleted:
    """The turn is completed and its answer is stored. `timings` are milliseconds."""

    type: ClassVar = EventType.COMPLETED
    message: AnswerMessage
    usage: Usage
    timings: dict[str, float]
    steps: int = 1
    """How often the model was asked."""
    stop_reason: str | None = None
    """`max_steps`, `max_calls` or `max_usd_per_turn`, where that ended the calls of tools."""
    output: Any = None
    """The value of an answer that was asked for as JSON."""


@value_object(frozen=True, slots=True)
class TurnFailed:
    """The turn failed. `retryable` says whether the same message may succeed when sent again."""

    type: ClassVar = EventType.FAILED
    error: TurnProblem
    retryable: bool


@value_object(frozen=True, slots=True)
class TurnCancelled:
    """The turn was cancelled; `message` has the text up to then."""

    type: ClassVar = EventType.CANCELLED
    message: AnswerMessage


EventValue: TypeAlias = (
    TurnCreated
    | TurnQueued
    | TurnInProgress
    | InputTranscriptDelta
    | InputTranscriptDone
    | OutputTextDelta
    | ReasoningText
    | StepStarted
    | ToolCallArguments
    | ToolCallCreated
    | ToolCallStarted
    | ToolCallProgress
    | ToolCallCompleted
    | ToolCallFailed
    | ActionRequested
    | ActionResolved
    | TurnRequiresAction
    | AudioClip
    | TurnCompleted
    | TurnFailed
    | TurnCancelled
)
EVENT_VALUES: dict[EventType, type[EventValue]] = {
    kind.type: kind for kind in cast("tuple[type[EventValue], ...]", EventValue.__args__)
}


@dataclass(slots=True, eq=False)
class TurnEvent:
    """One event: its number in the turn, and its value, its JSON or both."""

    number: int
    type: EventType
    _value: EventValue | None = None
    _json: bytes = field(default=b"")
    at_ms: int | None = None
    """Milliseconds since the turn was accepted; once stored, it is in the JSON alone."""

    def __eq__(self, other: object) -> bool:
        """Compare number, type and JSON."""
        if not isinstance(other, TurnEvent):
            return NotImplemented
        return (self.number, self.type, self.json) == (other.number, other.type, other.json)

    def __hash__(self) -> int:
        """Hash by number, which is unique in a turn."""
        return hash(self.number)

    @classmethod
    def of(cls, number: int, value: EventValue, at_ms: int | None = None) -> "TurnEvent":
        """Create an event with a number and a value."""
        return cls(number, value.type, value, at_ms=at_ms)

    @property
    def value(self) -> EventValue:
        """The value; one that was read from the database is parsed at its first use."""
        if self._value is None:
            self._value = cast("EventValue", _adapter(self.type).validate_json(self._json))
        return self._value

    @property
    def json(self) -> bytes:
        """The value as one line of JSON."""
        if not self._json:
            # asyncpg has its own UUID type, which orjson encodes only with `str`.
            encoded = orjson.dumps(self._value, default=str, option=orjson.OPT_UTC_Z)
            if self.at_ms is not None:
                encoded = b'{"at_ms":%d%s%s' % (self.at_ms, b"," * (encoded != b"{}"), encoded[1:])
            # A copy, because orjson's bytes keep their buffer of several kilobytes allocated.
            self._json = bytes(memoryview(encoded))
        return self._json

    @property
    def name(self) -> bytes:
        """The type as bytes, as in the event stream."""
        return _NAMES[self.type]

    @property
    def is_terminal(self) -> bool:
        """True for the last event of a turn."""
        return self.type in TERMINAL

    @property
    def ends_stream(self) -> bool:
        """True for the last event of a turn, and for the one after which it waits for actions."""
        return self.type in _LAST


@cache
def _adapter(kind: EventType) -> Any:  # noqa: ANN401  # pydantic's generic class
    from pydantic import TypeAdapter

    return TypeAdapter(EVENT_VALUES[kind])
