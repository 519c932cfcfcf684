"""What a line tells its client, in the order in which it happens."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from app.core.errors import AppError
from app.services.live_voice.items import Item
from app.services.turns import Usage


@dataclass(slots=True)
class ResponseState:
    """One answer, as its client knows it."""

    id: str
    is_spoken: bool
    metadata: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    voice: str | None = None
    status: str = "in_progress"
    """`in_progress`, `completed`, `cancelled`, `incomplete` or `failed`."""
    reason: str | None = None
    """`turn_detected`, `client_cancelled` or `max_output_tokens`."""
    error: AppError | None = None
    items: list[Item] = field(default_factory=list[Item])
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody has begun to speak."""

    item_id: str
    audio_start_ms: int


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """They have finished."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class BufferCommitted:
    """The buffered sound has become an item."""

    item_id: str
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class BufferCleared:
    """The buffered sound was forgotten."""


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item is part of the conversation."""

    item: Item
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ItemRetrieved:
    """An item that was asked for."""

    item: Item


@dataclass(frozen=True, slots=True)
class ItemDeleted:
    """An item is no part of the conversation any more."""

    item_id: str


@dataclass(frozen=True, slots=True)
class ItemTruncated:
    """What was not heard of an answer is cut off."""

    item_id: str
    audio_end_ms: int


@dataclass(frozen=True, slots=True)
class TranscriptPiece:
    """The next words of a recording."""

    item_id: str
    delta: str


@dataclass(frozen=True, slots=True)
class TranscriptReady:
    """The words of a recording, whose duration is in seconds."""

    item_id: str
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class TranscriptFailed:
    """A recording has no transcript."""

    item_id: str
    error: AppError


@dataclass(frozen=True, slots=True)
class ResponseBegan:
    """An answer is under way."""

    response: ResponseState


@dataclass(frozen=True, slots=True)
class AnswerBegan:
    """The message of an answer begins."""

    response: ResponseState
    item: Item
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class AnswerWords:
    """The next words of an answer; in a spoken one, those of the sound that follows."""

    response: ResponseState
    item: Item
    delta: str


@dataclass(frozen=True, slots=True)
class AnswerSound:
    """The next sound of an answer: 24 kHz mono, signed 16 bits."""

    response: ResponseState
    item: Item
    pcm: bytes


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    """The message of an answer is over, whole or cut short."""

    response: ResponseState
    item: Item


@dataclass(frozen=True, slots=True)
class CallMade:
    """The model calls one of the client's tools."""

    response: ResponseState
    item: Item
    index: int
    """Of the item in the response."""
    previous_item_id: str | None


@dataclass(frozen=True, slots=True)
class ResponseEnded:
    """An answer is over."""

    response: ResponseState


@dataclass(frozen=True, slots=True)
class LineFailed:
    """Something went wrong that is no answer's; the line stays open."""

    error: AppError


LineEvent: TypeAlias = (
    SpeechStarted
    | SpeechStopped
    | BufferCommitted
    | BufferCleared
    | ItemAdded
    | ItemRetrieved
    | ItemDeleted
    | ItemTruncated
    | TranscriptPiece
    | TranscriptReady
    | TranscriptFailed
    | ResponseBegan
    | AnswerBegan
    | AnswerWords
    | AnswerSound
    | AnswerEnded
    | CallMade
    | ResponseEnded
    | LineFailed
)
