"""What all answers of one line share."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import anyio

from app.core.database import Database
from app.core.request_context import current_context, set_context
from app.core.security import Caller
from app.services.live_voice.config import ResponseSettings
from app.services.live_voice.early_listener import EarlyListener
from app.services.live_voice.events import ItemAdded, TranscriptReady
from app.services.live_voice.inputs import TurnInput
from app.services.live_voice.items import Item, LineConversation
from app.services.live_voice.outbox import Outbox
from app.services.live_voice.sessions import LineSession
from app.services.turn_end_port import TurnEndJudge
from app.services.turns import TurnEngine, TurnOptions
from app.services.turns.execution.message_input import MessageInput
from app.services.voice import VoiceTurns


@dataclass(frozen=True, slots=True)
class LineParts:
    """The services that a line uses, and its state."""

    turns: TurnEngine
    voices: VoiceTurns
    database: Database
    caller: Caller
    session: LineSession
    conversation: LineConversation
    outbox: Outbox
    early: EarlyListener
    admit: Callable[[int], Awaitable[None]]
    """Counts a response, and bytes to store before its turn.

    Raises `RateLimited` and `StorageFull`."""
    message_input: MessageInput
    turn_end_judge: TurnEndJudge | None = None
    cancelling: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while a turn is cancelled: what a client says of an answer comes behind our guess."""


def begin_request() -> None:
    """Count the times of a turn from here on, and not from the beginning of the line."""
    if context := current_context():
        own = replace(context, problem=None, received_at=time.monotonic(), provider_calls=[])
        set_context(own)


async def prepare_turn(
    parts: LineParts, turn_input: TurnInput, request: ResponseSettings
) -> TurnOptions:
    """Store what stands before the turn, and its images; return what it is started with.

    Raises what `LineParts.admit`, `LineSession.store` and `MessageInput.prepare` do.
    """
    await parts.admit(turn_input.posted_bytes)
    await parts.session.store(turn_input.before, turn_input.history)
    options = turn_input.options(request, parts.session.id)
    if turn_input.images:
        _, options = await parts.message_input.prepare(
            parts.caller, parts.session.id, turn_input.given_parts, options
        )
        options = replace(options, parts=[*turn_input.results, *options.parts])
    return options


def add_question(parts: LineParts, turn_input: TurnInput) -> None:
    """Tell the client of the recording that is answered, now that it is stored."""
    item, conversation = turn_input.item, parts.conversation
    if item and item.is_sound and not conversation.has(item):
        before = conversation.add(item)
        parts.outbox.put(ItemAdded(item, before))


def tell_transcript(parts: LineParts, turn_input: TurnInput, item: Item, text: str) -> None:
    """Tell the client of the words of the recording that is answered."""
    item.text, item.has_transcript = text, True
    recording = turn_input.recording
    seconds = recording.duration_seconds if recording else 0.0
    parts.outbox.put(TranscriptReady(item.id, text, round(seconds, 3)))
