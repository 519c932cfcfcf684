"""A turn while this server accepts, runs or follows it.

Its events and lock are asyncio's: each of anyio's asks first which event loop it is on.
"""

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio

from app.core.errors import AppError
from app.models import MessageStatus, Role, TurnStatus
from app.services.turns.errors import InternalError, TurnCancelled, is_retryable
from app.services.turns.events import AFTER_ATTEMPT, EventType, TurnEvent, make_event
from app.services.turns.records import Outcome, Progress, Reply, TurnRecord
from app.services.turns.voice_stages import SpokenPiece, VoiceStages

_COALESCED_SECONDS = 0.02


class EventLog:
    """The events of one turn in this process: followers read it, the engine stores it in pieces."""

    def __init__(self, after: int = 0) -> None:
        self.events: list[TurnEvent] = []
        self._changed: asyncio.Event | None = None
        self._last_number = after
        self._stored_count = 0
        self._pending_text: list[str] = []
        self._flushed_at = -math.inf
        self._flush: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def skip_to(self, number: int, *, is_stored: bool) -> None:
        """Go on above `number`; `is_stored` tells whether the events up to here need no storing."""
        self._last_number = number
        if is_stored:
            self._stored_count = len(self.events)

    def emit(self, kind: EventType, data: object) -> None:
        """Append an event and wake whoever follows."""
        self.flush_text()
        self.append(make_event(self.next_number, kind, data))

    def say(self, delta: str) -> None:
        """Append text, joined to one event each 20 ms, so that a stream costs by time."""
        self._pending_text.append(delta)
        if self._flush:
            return
        loop = self._running_loop
        due_at = self._flushed_at + _COALESCED_SECONDS
        if loop.time() >= due_at:
            self.flush_text()
        else:
            self._flush = loop.call_at(due_at, self.flush_text)

    def flush_text(self) -> None:
        """Make an event of the text that waits."""
        if self._flush:
            self._flush.cancel()
            self._flush = None
        if not self._pending_text:
            return
        delta = storable("".join(self._pending_text))
        self._pending_text.clear()
        self._flushed_at = self._running_loop.time()
        self.append(make_event(self.next_number, EventType.TEXT, {"delta": delta}))

    @property
    def _running_loop(self) -> asyncio.AbstractEventLoop:
        # Python 3.11 asks the system for the process's id each time that it is asked for the loop.
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    @property
    def next_number(self) -> int:
        """The number of the next event."""
        return self._last_number + 1

    def append(self, event: TurnEvent) -> None:
        """Append an event that has the next number."""
        self.events.append(event)
        self._last_number = event.number
        self.wake()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; made only where somebody waits for it."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def wake(self) -> None:
        """Let every follower look again."""
        if self._changed:
            self._changed.set()
            self._changed = None

    def after(self, number: int) -> list[TurnEvent]:
        """Return the events above `number`."""
        if not self.events or self.events[-1].number <= number:
            return []
        return self.events[bisect_right(self.events, number, key=lambda event: event.number) :]

    def unstored(self) -> list[TurnEvent]:
        """Return the events that are not in the database yet."""
        return self.events[self._stored_count :]

    def stored(self, count: int) -> None:
        """Remember that `count` more events are in the database."""
        self._stored_count += count


@dataclass(slots=True)
class LiveTurn:
    """What the engine knows of a turn; `outcome` is there once `settled` is set."""

    record: TurnRecord
    voice: VoiceStages | None = None
    is_replayed: bool = False
    """True where an idempotency key led here, so that nothing new was begun."""
    accepted_at: float = field(default_factory=time.monotonic)
    progress: Progress = field(default_factory=Progress)
    log: EventLog = field(default_factory=EventLog)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Cancelling it ends the turn as cancelled, or leaves it to others where it `is_cut_off`."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome | None = None
    storing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while events are stored, so that a checkpoint and the end do not store one twice."""
    seen_unstored: bool = False
    stored_pieces: int = 0
    """How many pieces of the spoken answer are in the database."""
    is_cut_off: bool = False
    """True where this server shut down before the turn's end."""
    played_ms: int | None = None
    """How much of the answer's sound was played when somebody cancelled."""

    def begin(self) -> None:
        """Emit the events of a turn that starts to run, as every server would."""
        self.announce()
        self.log.emit(EventType.IN_PROGRESS, {"attempt": self.record.attempt})

    def cut_off(self) -> None:
        """End the turn here, so that another server runs it; but not where it ends already."""
        if not self.scope.cancel_called:
            self.is_cut_off = True
            self.scope.cancel()

    def take_over(self, record: TurnRecord) -> None:
        """Number what comes above everything that a dead server stored, or only showed."""
        self.record = record
        if self._is_unannounced:
            self._emit_acceptance()
        self.log.skip_to(self._first_number, is_stored=record.events_after > 0)

    def announce(self) -> None:
        """Emit the events of acceptance, once; above those of an attempt that failed before."""
        if not self._is_unannounced:
            return
        if self.record.attempt > 1:
            self.log.skip_to(self._first_number, is_stored=False)
        self._emit_acceptance()

    @property
    def _first_number(self) -> int:
        """Above the attempts before this one, too, of which nothing may be stored."""
        shown = max(self.record.numbers_after, AFTER_ATTEMPT * (self.record.attempt - 2))
        return shown + AFTER_ATTEMPT

    @property
    def _is_unannounced(self) -> bool:
        return self.log.next_number == 1 and not self.record.events_after

    def _emit_acceptance(self) -> None:
        record = self.record
        created = {
            "turn_id": record.id,
            "session_id": record.session_id,
            "user_message_id": record.user_message_id,
            "message_id": record.message_id,
        }
        self.log.emit(EventType.CREATED, created)
        if record.was_queued:
            self.log.emit(EventType.QUEUED, {})

    def unstored_pieces(self) -> Sequence[SpokenPiece]:
        """Return what is spoken and not in the database yet."""
        return self.voice.finished_pieces()[self.stored_pieces :] if self.voice else ()

    def say(self, delta: str) -> None:
        """Add to the answer."""
        self.progress.text.append(delta)
        self.log.say(delta)

    def terminal_event(self, outcome: Outcome) -> TurnEvent:
        """Return the event that says how the turn ended; it is shown once it is stored."""
        self.log.flush_text()
        match outcome.status:
            case TurnStatus.COMPLETED:
                kind = EventType.COMPLETED
                data: dict[str, object] = {"message": self._message(outcome)}
                data |= {"usage": self.progress.usage, "timings": self.progress.timings}
            case TurnStatus.CANCELLED:
                kind = EventType.CANCELLED
                data = {"message": self._message(outcome)}
            case _:
                error = outcome.error or InternalError("The turn failed.")
                told = {"code": error.code, "title": error.title(), "detail": error.detail}
                kind = EventType.FAILED
                data = {"error": told, "retryable": is_retryable(error)}
        return make_event(self.log.next_number, kind, data)

    def _message(self, outcome: Outcome) -> dict[str, object]:
        record = self.record
        return {
            "id": record.message_id,
            "session_id": record.session_id,
            "turn_id": record.id,
            "seq": record.user_seq + 1,
            "role": Role.ASSISTANT,
            "content": outcome.content,
            "status": outcome.message_status,
            "modality": record.modality,
            "created_at": record.created_at,
        }

    @property
    def text(self) -> str:
        """What has been answered so far, fit for any database."""
        return storable("".join(self.progress.text))

    def mark(self, name: str) -> None:
        """Remember when `name` was first reached, in milliseconds from acceptance."""
        elapsed_ms = (time.monotonic() - self.accepted_at) * 1000
        self.progress.timings.setdefault(name, round(elapsed_ms, 1))

    def end(self, outcome: Outcome) -> None:
        """Say how the turn ended, to all who wait for it; only the first word counts."""
        if self.settled.is_set():
            return
        self.outcome = outcome
        self.settled.set()
        self.log.wake()
        if self.voice:
            self.voice.ended(outcome.error)

    def completed(self, speech_error: AppError | None = None) -> Outcome:
        """Return how a turn ends whose answer is whole; only its sound may have failed."""
        truncated = self.progress.finish_reason == "length"
        return Outcome(
            TurnStatus.FAILED if speech_error else TurnStatus.COMPLETED,
            MessageStatus.TRUNCATED if truncated else MessageStatus.COMPLETED,
            self.text,
            speech_error,
        )

    def failed(self, error: AppError) -> Outcome:
        """Return how a turn ends whose answer broke off or never began."""
        return Outcome(TurnStatus.FAILED, MessageStatus.FAILED, self.text, error)

    def cancelled(self) -> Outcome:
        """Return how a turn ends that somebody cancelled."""
        error = TurnCancelled("The turn was cancelled before it was finished.")
        return Outcome(TurnStatus.CANCELLED, MessageStatus.CANCELLED, self.text, error)

    def reply(self) -> Reply:
        """Return the settled turn's answer, or raise the error that it ended with."""
        record, outcome = self.record, self.outcome
        if outcome is None:
            raise RuntimeError("the turn is not settled")
        if outcome.error:
            outcome.error.facts["turn_id"] = str(record.id)
            raise outcome.error.with_traceback(None)
        return Reply(
            id=record.message_id,
            session_id=record.session_id,
            turn_id=record.id,
            seq=record.user_seq + 1,
            role=Role.ASSISTANT,
            content=outcome.content,
            heard_content=None,
            status=outcome.message_status,
            modality=record.modality,
            created_at=record.created_at,
            usage=self.progress.usage,
            timings=self.progress.timings,
        )


def storable(text: str) -> str:
    """Replace what Postgres text cannot hold (NUL, lone surrogates) by U+FFFD."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
