"""The port of the turn engine for voice stages; implemented by `services.voice`."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import AppError
from app.services.ports import Recording, Transcript
from app.services.turns.events import AudioClip
from app.services.turns.records import Persona


@dataclass(frozen=True, slots=True)
class SpokenPiece:
    """One piece of an answer with its audio. The `mp3` of all pieces, joined, is one stream."""

    index: int
    text: str
    """The synthesized text."""
    content_start: int
    """Start of the piece in the written answer, in characters."""
    content_end: int
    sample_rate_hz: int
    start_sample: int
    sample_count: int
    mp3: bytes | None

    @property
    def end_sample(self) -> int:
        """First sample of the next piece."""
        return self.start_sample + self.sample_count

    @property
    def start_ms(self) -> int:
        """Milliseconds from the beginning of the answer's audio."""
        return round(self.start_sample * 1000 / self.sample_rate_hz)

    @property
    def duration_ms(self) -> int:
        """Duration until the next piece, in milliseconds."""
        return round(self.end_sample * 1000 / self.sample_rate_hz) - self.start_ms


class VoiceStages(Protocol):
    """The voice stages of one turn: transcription and speech synthesis."""

    @property
    def recording(self) -> Recording | None:
        """The recording that the user sent; `None` if the message was written."""
        ...

    @property
    def speaks(self) -> bool:
        """True if the answer is spoken."""
        ...

    @property
    def has_clips(self) -> bool:
        """True if the audio is also sent as events."""
        ...

    @property
    def heard_seconds(self) -> float:
        """Seconds of sound that the transcriber was sent so far, also before the turn and in vain.

        What has failed is not counted.
        """
        ...

    @property
    def spoken_characters(self) -> int:
        """Number of characters sent to speech synthesis so far."""
        ...

    def finished_pieces(self) -> Sequence[SpokenPiece]:
        """Return the finished pieces; the last one may still grow at the end of the stream."""
        ...

    def pieces(self) -> Sequence[SpokenPiece]:
        """Return all pieces so far, including an interrupted one."""
        ...

    async def transcribe(self, persona: Persona, on_words: Callable[[str], None]) -> Transcript:
        """Transcribe the recording; `on_words` is called with partial transcripts, if any.

        Called only with a `recording`. Raises the `AppError` that ends the turn.
        """
        ...

    async def speak(
        self,
        persona: Persona,
        deltas: AsyncIterator[str],
        on_clip: Callable[[AudioClip], None],
        mark: Callable[[str], None],
    ) -> None:
        """Synthesize the answer while it is generated, if it `speaks`; `deltas` yields its text.

        `on_clip` is called with each sentence if `has_clips`, `mark` with the name of each stage to
        time. If it raises an `AppError`, the turn fails and the written answer is kept. Cancelling
        it also cancels the requests at the provider.
        """
        ...

    def on_settled(self, error: AppError | None) -> None:
        """Handle the end of the turn: no more audio follows."""
        ...


class VoiceStagesFactory(Protocol):
    """Creates the voice stages of a restarted turn."""

    def make(self, recording: Recording | None, *, has_clips: bool, speaks: bool) -> VoiceStages:
        """Create the stages of one turn; `recording` is the stored one, if it began with one."""
        ...
