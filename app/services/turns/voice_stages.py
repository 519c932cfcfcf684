"""What the engine asks of voice; `services.voice` provides it."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import AppError
from app.services.ports import Recording, Transcript
from app.services.turns.records import Persona


@dataclass(frozen=True, slots=True)
class Clip:
    """One spoken sentence; `start_ms` counts from the beginning of the answer's sound."""

    index: int
    text: str
    start_ms: int
    duration_ms: int
    mp3: str
    """Base64 of a whole small MP3."""


@dataclass(frozen=True, slots=True)
class SpokenPiece:
    """One piece of an answer and its sound. The pieces' `mp3`, joined, are one stream."""

    index: int
    text: str
    """What was said."""
    content_start: int
    """Where the piece is in the written answer, in characters."""
    content_end: int
    sample_rate_hz: int
    start_sample: int
    sample_count: int
    mp3: bytes | None

    @property
    def end_sample(self) -> int:
        """Where the next piece begins."""
        return self.start_sample + self.sample_count

    @property
    def start_ms(self) -> int:
        """Milliseconds from the beginning of the answer's sound."""
        return round(self.start_sample * 1000 / self.sample_rate_hz)

    @property
    def duration_ms(self) -> int:
        """Milliseconds until the next piece."""
        return round(self.end_sample * 1000 / self.sample_rate_hz) - self.start_ms


class VoiceStages(Protocol):
    """How one voice turn hears its user and speaks its answer."""

    @property
    def recording(self) -> Recording:
        """What the user sent."""
        ...

    @property
    def has_clips(self) -> bool:
        """True where the turn's followers want the sound as events."""
        ...

    @property
    def spoken_characters(self) -> int:
        """How many characters were given to the speaker so far."""
        ...

    def finished_pieces(self) -> Sequence[SpokenPiece]:
        """Return what is spoken to its end; the last may grow by the end of the stream."""
        ...

    def pieces(self) -> Sequence[SpokenPiece]:
        """Return what was spoken so far, the piece that broke off included."""
        ...

    async def hear(self, persona: Persona, on_words: Callable[[str], None]) -> Transcript:
        """Write down what the user said; `on_words` is called with pieces of it, if they come.

        Raises the `AppError` that ends the turn.
        """
        ...

    async def speak(
        self,
        persona: Persona,
        deltas: AsyncIterator[str],
        on_clip: Callable[[Clip], None],
        mark: Callable[[str], None],
    ) -> None:
        """Speak the answer as it is written.

        `on_clip` is called with each sentence where followers want clips, `mark` with the name of
        each moment that is timed. Raises an `AppError`: then the turn fails, and the written
        answer is kept. Cancelled, nothing is left running at the provider.
        """
        ...

    def ended(self, error: AppError | None) -> None:
        """Learn that the turn is settled: nothing more will be spoken."""
        ...


class VoiceMaker(Protocol):
    """Makes the stages of a turn from its stored recording, when it is run again."""

    def make(self, recording: Recording, *, has_clips: bool) -> VoiceStages:
        """Return fresh stages."""
        ...
