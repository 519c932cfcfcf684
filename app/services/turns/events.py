"""What happens in a turn, as its followers see it: numbered, in order, written as JSON once."""

from collections.abc import Iterable, Sequence
from enum import StrEnum

import orjson

from app.core.values import value

AFTER_ATTEMPT = 10_000
"""Each attempt begins this far above the last stored number: what the one before showed, stored or
not, has lower numbers, so that nobody who comes back misses anything."""


class EventType(StrEnum):
    """The names of events on the wire."""

    CREATED = "turn.created"
    QUEUED = "turn.queued"
    IN_PROGRESS = "turn.in_progress"
    TRANSCRIPT_DELTA = "input_transcript.delta"
    TRANSCRIPT = "input_transcript.done"
    TEXT = "output_text.delta"
    AUDIO = "audio.clip"
    COMPLETED = "turn.completed"
    FAILED = "turn.failed"
    CANCELLED = "turn.cancelled"


NAMES = {kind: kind.value.encode() for kind in EventType}
"""Each as bytes, for there are many."""
TERMINAL = frozenset((EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED))


@value(frozen=True, slots=True)
class TurnEvent:
    """One step of a turn. `data` is one line of JSON."""

    number: int
    type: EventType
    data: bytes

    @property
    def is_terminal(self) -> bool:
        """True for the last event of a turn."""
        return self.type in TERMINAL


def make_event(number: int, kind: EventType, data: object) -> TurnEvent:
    """Write `data` as JSON. asyncpg has a UUID of its own, which only `str` understands."""
    json = orjson.dumps(data, default=str, option=orjson.OPT_UTC_Z)
    # A copy, for orjson's bytes keep the kilobytes that they were written in.
    return TurnEvent(number, kind, bytes(memoryview(json)))


def pack(events: Iterable[TurnEvent]) -> bytes:
    """Return events as they are stored: a line each."""
    return b"\n".join(
        [b"%d %s %s" % (event.number, NAMES[event.type], event.data) for event in events]
    )


def unpack(lines: bytes) -> Sequence[TurnEvent]:
    """Read what `pack` wrote."""
    return [_unpack_line(line) for line in lines.split(b"\n") if line]


def _unpack_line(line: bytes) -> TurnEvent:
    number, kind, data = line.split(b" ", 2)
    return TurnEvent(int(number), EventType(kind.decode()), data)
