"""Turn detection: finds out when somebody begins to speak and when they have finished."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from app.services.audio.samples import SAMPLE_BYTES, to_pcm16
from app.services.audio.silero import CHUNK_SAMPLES, SAMPLE_RATE_HZ, Floats, SpeechDetector
from app.services.live_voice.config import DetectionKind, TurnDetection
from app.services.live_voice.errors import LiveInputRefused

WINDOW_MS = CHUNK_SAMPLES * 1000 // SAMPLE_RATE_HZ
_ONSET_WINDOWS, _ONSET_SPEECH = 4, 3
"""Somebody speaks where 3 of 4 windows sound like it: one alone may be a click."""
_RELEASE = 0.15
"""How far below the threshold a window must be to count as silence."""
_SEMANTIC_SILENCE_MS = 600
"""What ends a turn of `semantic_vad`: no model tells whether a sentence is finished."""
_KEPT_SILENCE_MS = 300
"""How much of the silence at its end belongs to a recording."""
_LONGEST_TURN_SECONDS = 120
_LONGEST_BUFFER_SECONDS = 600
_SHORTEST_COMMIT_MS = 100
_BYTES_A_SECOND = SAMPLE_RATE_HZ * SAMPLE_BYTES


@dataclass(frozen=True, slots=True)
class SpeechBegan:
    """Somebody began to speak; `at_ms` is where the recording will begin."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """They have finished; `pcm` is what was said, 16 kHz mono, signed 16 bits."""

    at_ms: int
    pcm: bytes


SpeechEvent = SpeechBegan | SpeechEnded


class TurnDetector:
    """Takes the sound of one line, 16 kHz mono; times are milliseconds since its beginning."""

    def __init__(self, detection: TurnDetection | None) -> None:
        self._detection = detection
        self._detector = SpeechDetector()
        self._kept = bytearray()
        """The sound from `_kept_from` on."""
        self._kept_from = 0
        """In samples from the line's beginning, as all places here."""
        self._position = 0
        """How many samples were judged, or with no detection taken, so far."""
        self._unjudged = np.zeros(0, np.float32)
        self._recent: deque[bool] = deque(maxlen=_ONSET_WINDOWS)
        self._is_speaking = False
        self._silent_since: int | None = None
        self._began_at = 0

    @property
    def is_speaking(self) -> bool:
        """True from the beginning of speech to its end, pauses included."""
        return self._is_speaking

    def change(self, detection: TurnDetection | None) -> None:
        """Listen for something else from now on; what was kept stays."""
        if (detection is None) != (self._detection is None):
            self._is_speaking, self._silent_since = False, None
            self._recent.clear()
            self._position += len(self._unjudged)
            self._unjudged = np.zeros(0, np.float32)
        self._detection = detection

    def hear(self, samples: Floats) -> list[SpeechEvent]:
        """Take the next samples, in -1 to 1; return what they bring, mostly nothing.

        Raises `LiveInputRefused` where ten minutes are kept already.
        """
        if (
            len(self._kept) + len(samples) * SAMPLE_BYTES
            > _LONGEST_BUFFER_SECONDS * _BYTES_A_SECOND
        ):
            raise LiveInputRefused(
                "input_audio_buffer_full", "The buffer holds ten minutes: commit or clear it."
            )
        self._kept += to_pcm16(samples)
        if self._detection is None:
            self._position += len(samples)
            return []
        block = np.concatenate([self._unjudged, samples])
        whole = len(block) // CHUNK_SAMPLES * CHUNK_SAMPLES
        self._unjudged = block[whole:]
        if not whole:
            return []
        events: list[SpeechEvent] = []
        for probability in self._detector.probabilities(block[:whole]):
            self._position += CHUNK_SAMPLES
            self._judge(float(probability), self._detection, events)
        return events

    def take(self) -> bytes:
        """Return all that is kept, and keep nothing. Raises `LiveInputRefused` for too little."""
        pcm = bytes(self._kept)
        shortest = _SHORTEST_COMMIT_MS * _BYTES_A_SECOND // 1000
        if len(pcm) < shortest:
            held_ms = len(pcm) * 1000 // _BYTES_A_SECOND
            raise LiveInputRefused(
                "input_audio_buffer_commit_empty",
                f"Error committing input audio buffer: the buffer is too small. Expected at least "
                f"{_SHORTEST_COMMIT_MS}ms of audio, but buffer only has {held_ms}ms of audio.",
            )
        self.clear()
        return pcm

    def clear(self) -> None:
        """Forget what is kept, and whoever speaks."""
        self._kept_from += len(self._kept) // SAMPLE_BYTES
        self._kept.clear()
        self._recent.clear()
        self._is_speaking, self._silent_since = False, None

    def _judge(
        self, probability: float, detection: TurnDetection, events: list[SpeechEvent]
    ) -> None:
        is_speech = probability >= detection.threshold
        if not self._is_speaking:
            self._recent.append(is_speech)
            if sum(self._recent) >= _ONSET_SPEECH:
                self._begin(detection, events)
            else:
                self._forget_before(self._onset() - _samples(detection.prefix_padding_ms))
            return
        if is_speech:
            self._silent_since = None
        elif self._silent_since is None and probability < detection.threshold - _RELEASE:
            self._silent_since = self._position - CHUNK_SAMPLES
        if self._is_over(detection):
            self._end(events)

    def _onset(self) -> int:
        """Return where the windows begin that may be the beginning of speech."""
        return self._position - len(self._recent) * CHUNK_SAMPLES

    def _begin(self, detection: TurnDetection, events: list[SpeechEvent]) -> None:
        self._forget_before(self._onset() - _samples(detection.prefix_padding_ms))
        self._is_speaking, self._silent_since = True, None
        self._began_at = self._kept_from
        self._recent.clear()
        events.append(SpeechBegan(_milliseconds(self._began_at)))

    def _is_over(self, detection: TurnDetection) -> bool:
        if self._position - self._began_at >= _LONGEST_TURN_SECONDS * SAMPLE_RATE_HZ:
            return True
        if self._silent_since is None:
            return False
        is_semantic = detection.kind is DetectionKind.SEMANTIC
        silence_ms = _SEMANTIC_SILENCE_MS if is_semantic else detection.silence_duration_ms
        return self._position - self._silent_since >= _samples(silence_ms)

    def _end(self, events: list[SpeechEvent]) -> None:
        end = self._position
        if self._silent_since is not None:
            end = min(end, self._silent_since + _samples(_KEPT_SILENCE_MS))
        pcm = bytes(self._kept[: (end - self._kept_from) * SAMPLE_BYTES])
        self._is_speaking, self._silent_since = False, None
        self._forget_before(end)
        events.append(SpeechEnded(_milliseconds(self._position), pcm))

    def _forget_before(self, place: int) -> None:
        if place > self._kept_from:
            del self._kept[: (place - self._kept_from) * SAMPLE_BYTES]
            self._kept_from = place


def _samples(milliseconds: int) -> int:
    return milliseconds * SAMPLE_RATE_HZ // 1000


def _milliseconds(samples: int) -> int:
    return samples * 1000 // SAMPLE_RATE_HZ
