"""The values that the turn engine works with."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from app.core.errors import AppError
from app.models import MessageStatus, Modality, Role, TurnStatus
from app.services.turns.prompt import HistoryMessage


@dataclass(frozen=True, slots=True)
class Persona:
    """What a turn needs of its agent, at the version it was accepted with."""

    version: int
    system_prompt: str
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    context_tokens: int | None
    voice: str | None
    language: str | None


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """A turn as it was accepted or taken over; `attempt` is the fence of every later write."""

    workspace_id: UUID
    id: UUID
    session_id: UUID
    modality: Modality
    status: TurnStatus
    attempt: int
    user_message_id: UUID
    message_id: UUID
    user_seq: int
    created_at: datetime
    persona: Persona
    history: tuple[HistoryMessage, ...]
    """The settled messages and the question; empty while the turn is queued."""
    was_queued: bool = False
    """True where it had to wait for another turn."""
    events_after: int = 0
    """The number of the last event that a server before this one stored."""


class OnBusy(StrEnum):
    """What becomes of a message while a turn of its session is live."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An `Idempotency-Key`, and the SHA-256 of the route and body that it came with."""

    key: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """How a turn is accepted."""

    on_busy: OnBusy = OnBusy.ENQUEUE
    key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a turn used; `None` where it is not known."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


@dataclass(slots=True)
class Progress:
    """What a running turn has come to so far; written by its task alone."""

    text: list[str] = field(default_factory=list[str])
    heard: str | None = None
    speech_in_seconds: float | None = None
    speech_out_characters: int | None = None
    usage: Usage = field(default_factory=Usage)
    model: str | None = None
    finish_reason: str | None = None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    """Milliseconds from the moment of acceptance, by name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended: `error` is set unless it completed."""

    status: TurnStatus
    message_status: MessageStatus
    content: str
    error: AppError | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The assistant's message, stored."""

    id: UUID
    session_id: UUID
    turn_id: UUID
    seq: int
    content: str
    status: MessageStatus
    created_at: datetime
    usage: Usage
    timings: dict[str, float]
    modality: Modality = Modality.TEXT
    role: Role = Role.ASSISTANT
    heard_content: str | None = None
