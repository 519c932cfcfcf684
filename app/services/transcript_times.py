"""The times of a transcript's pieces."""

from enum import StrEnum

from app.core.value_objects import value_object


class TimeUnit(StrEnum):
    """What a transcript can have the times of."""

    SEGMENT = "segment"
    """A sentence or so, as the provider cuts them."""
    WORD = "word"


@value_object(frozen=True, slots=True)
class TimedText:
    """A piece of a transcript. Its times are seconds from the beginning of the recording."""

    text: str
    start_seconds: float
    end_seconds: float


NO_TIMES: frozenset[TimeUnit] = frozenset()
