"""The events of one turn in this process: subscribers read them, the engine stores them in batches.

Uses asyncio's events, because anyio's look up the event loop type at each call.
"""

import asyncio
import math
import time
from bisect import bisect_right

from app.core.storable_text import storable_text
from app.services.turns.events import EventValue, OutputTextDelta, ReasoningText, TurnEvent

AFTER_ATTEMPT = 10_000
"""Each attempt begins this far above the last stored number. What the attempt before it showed,
stored or not, has lower numbers, so that a subscriber who resumes misses nothing."""
_COALESCED_SECONDS = 0.02


class EventLog:
    """Numbers the events of a turn, joins its text deltas, and wakes subscribers."""

    def __init__(self, after: int = 0) -> None:
        self.events: list[TurnEvent] = []
        self.began_at = time.time()
        """When the turn was accepted, in seconds since 1970: from there events have their times."""
        self._changed: asyncio.Event | None = None
        self._last_number = after
        self._stored_count = 0
        self._pending_text: list[str] = []
        self._pending_kind: type[OutputTextDelta | ReasoningText] = OutputTextDelta
        self._flushed_at = -math.inf
        self._flush: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def skip_to(self, number: int, *, is_stored: bool) -> None:
        """Number the next event above `number`; `is_stored`: all events so far are stored."""
        self._last_number = number
        if is_stored:
            self._stored_count = len(self.events)

    def emit(self, value: EventValue) -> None:
        """Append an event and wake its subscribers."""
        self.flush_text()
        self.append(self.next_event(value))

    def append_text(self, delta: str) -> None:
        """Append text; deltas within 20 ms are joined to one event, which bounds the cost."""
        if self._pending_kind is not OutputTextDelta:
            self.flush_text()
            self._pending_kind = OutputTextDelta
        self._append_pending(delta)

    def append_reasoning(self, delta: str) -> None:
        """Append what the model thinks aloud, likewise."""
        if self._pending_kind is not ReasoningText:
            self.flush_text()
            self._pending_kind = ReasoningText
        self._append_pending(delta)

    def _append_pending(self, delta: str) -> None:
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
        """Emit an event with the buffered text, if any."""
        if self._flush:
            self._flush.cancel()
            self._flush = None
        if not self._pending_text:
            return
        delta = storable_text("".join(self._pending_text))
        self._pending_text.clear()
        self._flushed_at = self._running_loop.time()
        self.append(self.next_event(self._pending_kind(delta)))

    @property
    def _running_loop(self) -> asyncio.AbstractEventLoop:
        # Cached, because Python 3.11 calls `getpid` at each look-up of the running loop.
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    @property
    def next_number(self) -> int:
        """The number of the next event."""
        return self._last_number + 1

    def next_event(self, value: EventValue) -> TurnEvent:
        """Create the next event, as of now; it is not appended."""
        elapsed_ms = int((time.time() - self.began_at) * 1000 + 0.5)
        at_ms = max(0, elapsed_ms)  # the clock may be set back
        return TurnEvent.of(self._last_number + 1, value, at_ms)

    def append(self, event: TurnEvent) -> None:
        """Append an event that has the next number."""
        self.events.append(event)
        self._last_number = event.number
        self.wake()

    @property
    def changed(self) -> asyncio.Event:
        """An event that is set at the next change; created only when a subscriber waits."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def wake(self) -> None:
        """Wake all subscribers."""
        if self._changed:
            self._changed.set()
            self._changed = None

    def after(self, number: int) -> list[TurnEvent]:
        """Return the events above `number`."""
        if not self.events or self.events[-1].number <= number:
            return []
        return self.events[bisect_right(self.events, number, key=lambda event: event.number) :]

    def unstored_events(self) -> list[TurnEvent]:
        """Return the events that are not stored yet."""
        return self.events[self._stored_count :]

    def mark_stored(self, count: int) -> None:
        """Mark `count` more events as stored."""
        self._stored_count += count
