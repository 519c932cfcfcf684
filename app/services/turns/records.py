"""Value objects of the turn engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from app.core.errors import AppError
from app.core.value_objects import value_object
from app.models import BusyPolicy, MessageStatus, Modality, Role, TurnStatus
from app.services.prompt_lines import PromptLine
from app.services.tool_ports import AgentTools
from app.services.turns.parts import PARAGRAPH, InputPart, Part
from app.services.turns.requests import AnswerFormat, Conversation, RequestKey, TurnRequest
from app.services.turns.steps import Call, Step
from app.services.usage import Reservation


class HistoryMessage(NamedTuple):
    """A message of the session, with the fields that the prompt needs."""

    seq: int
    role: str
    """One of `Role`, as text: conversion would cost too much for the messages of a history."""
    status: str
    """One of `MessageStatus`."""
    content: str
    modality: str = Modality.TEXT.value
    """One of `Modality`."""
    parts: str | None = None
    """The JSON of the parts of an answer with tool calls, or of a message with files; `None` for
    plain text."""


@value_object(frozen=True, slots=True)
class Persona:
    """The settings of an agent version that a turn uses; fixed at its acceptance."""

    version: int
    system_prompt: str
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    context_tokens: int | None
    voice: str | None
    language: str | None
    tools: AgentTools | None = None
    """`None` where the agent has no tools."""
    tool_policy: Mapping[str, Any] | None = None
    """As it is stored; `tools.policy` has the defaults filled in."""
    output_schema: Mapping[str, Any] | None = None
    """The JSON Schema of the agent's answers."""
    output_speak: str | None = None
    """A JSON Pointer to what is read aloud of such an answer."""
    vision: bool | None = None
    """Whether the model sees images; `None` for what the server's settings say."""


@value_object(frozen=True, slots=True)
class Receipt:
    """Usage of a turn, summed over its attempts. `cost_nanos` is `None` if a price is unknown."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    speech_in_seconds: float
    speech_out_characters: int
    cost_nanos: int | None
    estimated: bool
    budget_tokens: int = 0
    """Tokens that the last attempt charges to the account's budgets."""
    budget_nanos: int = 0


def schema_of_answer(persona: Persona, chosen: AnswerFormat | None) -> Mapping[str, Any] | None:
    """Return the schema of an answer: the one that was chosen for it, else the agent's."""
    return chosen.format.schema if chosen else persona.output_schema


def persona_of_request(persona: Persona, request: TurnRequest | None) -> Persona:
    """Return the persona with what a turn's own request says instead."""
    if request is None or not request.is_own:
        return persona
    limits = [persona.max_output_tokens, request.max_output_tokens]
    given = [limit for limit in limits if limit is not None]
    texts = [text for text in (persona.system_prompt, request.system_prompt) if text]
    return replace(
        persona,
        system_prompt=PARAGRAPH.join(texts),
        temperature=(persona.temperature if request.temperature is None else request.temperature),
        max_output_tokens=min(given) if given else None,
        voice=request.voice or persona.voice,
    )


@value_object(frozen=True, slots=True)
class TurnRecord:
    """A turn as accepted or taken over; every later write is conditional on its `attempt`."""

    workspace_id: UUID
    id: UUID
    session_id: UUID
    """Of an unstored turn its own id, which no session has."""
    modality: Modality
    status: TurnStatus
    attempt: int
    user_message_id: UUID
    message_id: UUID
    user_seq: int
    created_at: datetime
    persona: Persona
    history: tuple[HistoryMessage, ...]
    """The settled messages and the turn's user message; empty while the turn is queued."""
    was_queued: bool = False
    """True if it had to wait for another turn of the session."""
    events_after: int = 0
    """The number of the last event that a previous server stored."""
    numbers_after: int = 0
    """The same, but also set if those events were deleted to restart a failed turn."""
    reservation: Reservation | None = None
    """The reservation in the account's budgets."""
    agent_id: UUID | None = None
    key_id: str | None = None
    """The key that pays; `None` for requests without a key."""
    user_id: str | None = None
    earlier: Receipt | None = None
    """Usage of the earlier attempts that were settled."""
    request: TurnRequest | None = None
    """What this turn alone asks for."""
    steps: tuple[Step, ...] = ()
    """What earlier attempts stored; empty for a new turn."""
    output: Modality = Modality.TEXT
    """Whether the answer is spoken; `modality` is the user message's."""
    keeps_content: bool = True
    """False for an unstored turn: its row has no session, and neither messages nor events."""

    @property
    def has_answer_schema(self) -> bool:
        """True where the answer must be JSON."""
        chosen = self.request.answer_format if self.request else None
        return schema_of_answer(self.persona, chosen) is not None

    @property
    def has_sound(self) -> bool:
        """True if the user message is a recording, or the answer is spoken."""
        return self.modality is Modality.VOICE or self.output is Modality.VOICE


_NO_REQUEST = TurnRequest()


@value_object(frozen=True, slots=True)
class TurnOptions:
    """Options of accepting a turn."""

    on_busy: BusyPolicy = BusyPolicy.ENQUEUE
    key: RequestKey | None = None
    keeps_content: bool = True
    """False for an unstored turn: a row with its receipt, and neither session nor content.

    Its prompt is `request.prompt`; it is cancelled when its client leaves, and not run again."""
    agent: UUID | str | None = None
    """Who answers an unstored turn: an id, a slug behind `crud.SLUG_PREFIX`, or a name."""
    request: TurnRequest = _NO_REQUEST
    answer_format: AnswerFormat | None = None
    """`None` for what the agent's version says."""
    parts: Sequence[InputPart] = ()
    """The message with its images and documents, in order; empty for plain text."""
    user_message_id: UUID | None = None
    """The id of the user message, where its sender was told it before."""
    conversation: Conversation | None = None
    """`None` for a turn of the native API, and for an unstored one."""
    agent_version: int | None = None
    """The version of the session's agent that answers; `None` for the newest."""

    @property
    def more_bytes(self) -> int:
        """About how much is stored beside the message's text."""
        earlier = self.conversation.earlier if self.conversation else ()
        posted = sum(line.size_bytes for line in earlier)
        return posted + (len(orjson.dumps(self.request.to_json())) if self.request.shown else 0)


@value_object(frozen=True, slots=True)
class Usage:
    """Usage of a turn as clients see it; `None` where unknown."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    estimated: bool = False
    """True if the provider reported no counts: tokens are estimated from text lengths."""


@dataclass(slots=True)
class Progress:
    """The state of a running turn; written only by its own task."""

    text: list[str] = field(default_factory=list[str])
    """Of the whole answer."""
    reasoning: list[str] = field(default_factory=list[str])
    """Of the running step."""
    step_text_start: int = 0
    """Where the running step begins in `text`."""
    calls: dict[int, Call] = field(default_factory=dict[int, Call])
    """Of the running step, by their places, as the model writes them."""
    steps: list[Step] = field(default_factory=list[Step])
    """The steps before it; they have calls."""
    rejected: list[Step] = field(default_factory=list[Step])
    """Answers that broke the schema: they are paid for, and no part of the answer."""
    output_text: str | None = None
    """The last answer where a schema was asked for: valid, unless the turn failed."""
    output: Any = None
    """The value of `output_text`, if that is valid."""
    stop_reason: str | None = None
    summary: str | None = None
    """Of what the prompt leaves out; `None` before it was looked for."""
    summary_usage: Usage | None = None
    """What it took to make it."""
    tools_nanos: int = 0
    """What the calls of this attempt cost."""
    speech_in_seconds: float | None = None
    speech_out_characters: int | None = None
    output_tokens_limit: int | None = None
    """The limit of the answer that was sent to the model, and reserved."""
    prompt: Sequence[PromptLine] = ()
    """The prompt sent to the model; empty before the request."""
    usage: Usage = field(default_factory=Usage)
    receipt: Receipt | None = None
    """Set when the turn has ended."""
    ended_at: datetime | None = None
    """Likewise; also the time of the answer."""
    model: str | None = None
    finish_reason: str | None = None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    """Milliseconds from acceptance to each stage, by name."""


@value_object(frozen=True, slots=True)
class Outcome:
    """How a turn ended: `error` is set unless it completed."""

    status: TurnStatus
    message_status: MessageStatus
    content: str
    error: AppError | None = None
    parts: list[Part] | None = None
    """`None` where the answer is plain text."""
    heard_content: str | None = None
    """What was heard of a spoken answer; `None` means all of it."""
    output: Any = None
    """The value of an answer that a schema was asked for."""


@value_object(frozen=True, slots=True)
class Reply:
    """The stored assistant message, with the fields of the API's response."""

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
    parts: list[dict[str, Any]] | None
    output: Any
    usage: Usage
    timings: dict[str, float]
