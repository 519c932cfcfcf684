"""The values that the turn engine works with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from app.core.errors import AppError
from app.core.values import value
from app.models import MessageStatus, Modality, Role, TurnStatus
from app.services.ports import PromptLine
from app.services.turns.prompt import HistoryMessage
from app.services.usage import Reservation


@value(frozen=True, slots=True)
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


@value(frozen=True, slots=True)
class Receipt:
    """What a turn used in all of its attempts. Money is `None` where a price is not known."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    speech_in_seconds: float
    speech_out_characters: int
    cost_nanos: int | None
    estimated: bool
    budget_tokens: int = 0
    """What the last attempt takes of the account's budgets."""
    budget_nanos: int = 0


@value(frozen=True, slots=True)
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
    numbers_after: int = 0
    """The same, also where the event itself was dropped, to run a turn again that failed."""
    reservation: Reservation | None = None
    """What the account's budgets keep for it."""
    earlier: Receipt | None = None
    """What attempts before this one used, where they were settled."""


class OnBusy(StrEnum):
    """What becomes of a message while a turn of its session is live."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


@value(frozen=True, slots=True)
class RequestKey:
    """An `Idempotency-Key`, and the SHA-256 of the route and body that it came with."""

    key: str
    fingerprint: bytes


@value(frozen=True, slots=True)
class TurnOptions:
    """How a turn is accepted."""

    on_busy: OnBusy = OnBusy.ENQUEUE
    key: RequestKey | None = None


@value(frozen=True, slots=True)
class Usage:
    """What a turn used; `None` where it is not known."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    estimated: bool = False
    """True where the provider did not say, so that tokens are counted by the length of texts."""


@dataclass(slots=True)
class Progress:
    """What a running turn has come to so far; written by its task alone."""

    text: list[str] = field(default_factory=list[str])
    heard: str | None = None
    speech_in_seconds: float | None = None
    speech_out_characters: int | None = None
    prompt: Sequence[PromptLine] = ()
    """What the model was asked; empty while it was not."""
    usage: Usage = field(default_factory=Usage)
    receipt: Receipt | None = None
    """There once the turn has ended."""
    model: str | None = None
    finish_reason: str | None = None
    timings: dict[str, float] = field(default_factory=dict[str, float])
    """Milliseconds from the moment of acceptance, by name."""


@value(frozen=True, slots=True)
class Outcome:
    """How a turn ended: `error` is set unless it completed."""

    status: TurnStatus
    message_status: MessageStatus
    content: str
    error: AppError | None = None


@value(frozen=True, slots=True)
class Reply:
    """The assistant's message, stored: the fields that clients see, and as they see them."""

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
    usage: Usage
    timings: dict[str, float]
