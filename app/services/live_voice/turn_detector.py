"""Turn detection: finds out when somebody begins to speak and when they have finished."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.services.audio.samples import SAMPLE_BYTES, to_pcm16
from app.services.audio.silero import CHUNK_SAMPLES, SAMPLE_RATE_HZ, Floats, SpeechDetector
from app.services.live_voice.config import DetectionKind, Eagerness, TurnDetection
from app.services.live_voice.errors import LiveInputRefused

WINDOW_MS = CHUNK_SAMPLES * 1000 // SAMPLE_RATE_HZ
_ONSET_WINDOWS, _ONSET_SPEECH = 4, 3
"""Somebody speaks where 3 of 4 windows sound like it: one alone may be a click."""
_RELEASE = 0.15
"""How far below the threshold a window must be to count as silence."""
_UNJUDGED_MS = 600
"""The silence that ends a turn of `semantic_vad` where no model tells whether it is finished."""
_FINISHED_MS = {
    Eagerness.LOW: 512, Eagerness.MEDIUM: 384, Eagerness.AUTO: 384, Eagerness.HIGH: 192,
}  # fmt: skip
"""The silence that ends a turn which the model calls finished: a comma is an end to it, too."""
_UNFINISHED_MS = {
    Eagerness.LOW: 8000, Eagerness.MEDIUM: 4000, Eagerness.AUTO: 4000, Eagerness.HIGH: 2000,
}  # fmt: skip
_KEPT_SILENCE_MS = 300
"""How much of the silence at its end belongs to a recording."""
_PAUSE_MS, _JUDGED_PAUSE_MS = 192, 128
"""The silence after which somebody may have finished. The model is asked earlier: with more silence
it takes more for finished."""
_LASTING_WINDOWS = 1000 // WINDOW_MS
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


@dataclass(frozen=True, slots=True)
class SpeechLasted:
    """They have spoken for a second: that is more than a cough."""


@dataclass(frozen=True, slots=True)
class SpeechPaused:
    """They may have finished; `pcm` is what was said so far."""

    pcm: bytes
    asks: int | None = None
    """Where a model should judge: what `TurnDetector.take_verdict` is told of it by."""


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """They go on behind a `SpeechPaused`."""


SpeechEvent = SpeechBegan | SpeechLasted | SpeechPaused | SpeechResumed | SpeechEnded


class TurnDetector:
    """Takes the sound of one line, 16 kHz mono; times are milliseconds since its beginning."""

    def __init__(
        self, detection: TurnDetection | None, has_judge: Callable[[], bool] = lambda: False
    ) -> None:
        """`has_judge` tells whether a model can be asked if somebody has finished."""
        self._detection = detection
        self._has_judge = has_judge
        self._pause_number = 0
        self._is_asked = False
        """True where a model judges the pause; `_is_finished` is its verdict, if that is known."""
        self._is_finished: bool | None = None
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
        self._is_paused = False
        self._began_at = 0
        self._speech_windows = 0
        """How many windows of what is being said sound like speech."""

    @property
    def is_speaking(self) -> bool:
        """True from the beginning of speech to its end, pauses included."""
        return self._is_speaking

    def change(self, detection: TurnDetection | None) -> None:
        """Listen for something else from now on; what was kept stays."""
        if (detection is None) != (self._detection is None):
            self._stop_speaking()
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

    def take_verdict(self, pause: int, *, is_finished: bool | None) -> bool:
        """Take note of what a model says of a pause, `None` where it failed.

        Returns whether the pause still lasts.
        """
        is_current = self._is_paused and pause == self._pause_number
        if is_current:
            self._is_finished, self._is_asked = is_finished, is_finished is not None
        return is_current

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
        self._stop_speaking()

    def _stop_speaking(self) -> None:
        self._is_speaking, self._silent_since, self._is_paused = False, None, False

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
            self._go_on(events)
        elif self._silent_since is None and probability < detection.threshold - _RELEASE:
            self._silent_since = self._position - CHUNK_SAMPLES
        if self._is_over(detection):
            self._end(events)
        elif not self._is_paused and self._silent_since is not None:
            self._pause(detection, events)

    def _pause(self, detection: TurnDetection, events: list[SpeechEvent]) -> None:
        """Tell of a silence in which somebody may have finished, once it is long enough."""
        asks = detection.kind is DetectionKind.SEMANTIC and self._has_judge()
        pause_ms = _JUDGED_PAUSE_MS if asks else _PAUSE_MS
        if self._silence < _samples(pause_ms):
            return
        if not asks and self._silence_ms(detection) <= pause_ms + WINDOW_MS:
            return
        self._is_paused, self._is_asked, self._is_finished = True, asks, None
        self._pause_number += 1
        number = self._pause_number if asks else None
        events.append(SpeechPaused(self._pcm_until(self._position), number))

    def _go_on(self, events: list[SpeechEvent]) -> None:
        self._silent_since = None
        if self._is_paused:
            self._is_paused = False
            events.append(SpeechResumed())
        self._speech_windows += 1
        if self._speech_windows == _LASTING_WINDOWS:
            events.append(SpeechLasted())

    def _onset(self) -> int:
        """Return where the windows begin that may be the beginning of speech."""
        return self._position - len(self._recent) * CHUNK_SAMPLES

    def _begin(self, detection: TurnDetection, events: list[SpeechEvent]) -> None:
        self._forget_before(self._onset() - _samples(detection.prefix_padding_ms))
        self._is_speaking, self._silent_since, self._is_paused = True, None, False
        self._speech_windows = sum(self._recent)
        self._began_at = self._kept_from
        self._recent.clear()
        events.append(SpeechBegan(_milliseconds(self._began_at)))

    def _is_over(self, detection: TurnDetection) -> bool:
        if self._position - self._began_at >= _LONGEST_TURN_SECONDS * SAMPLE_RATE_HZ:
            return True
        return self._silence >= _samples(self._silence_ms(detection))

    def _silence_ms(self, detection: TurnDetection) -> int:
        """Return how long a silence ends the turn."""
        if detection.kind is DetectionKind.SILENCE:
            return detection.silence_duration_ms
        if not self._is_paused or not self._is_asked:
            return _UNJUDGED_MS
        limits = _FINISHED_MS if self._is_finished else _UNFINISHED_MS
        return limits[detection.eagerness]

    @property
    def _silence(self) -> int:
        """How many samples the silence at the end has; -1 while there is speech."""
        return -1 if self._silent_since is None else self._position - self._silent_since

    def _end(self, events: list[SpeechEvent]) -> None:
        end = self._position
        if self._silent_since is not None:
            end = min(end, self._silent_since + _samples(_KEPT_SILENCE_MS))
        pcm = self._pcm_until(end)
        self._stop_speaking()
        self._forget_before(end)
        events.append(SpeechEnded(_milliseconds(self._position), pcm))

    def _pcm_until(self, end: int) -> bytes:
        return bytes(self._kept[: (end - self._kept_from) * SAMPLE_BYTES])

    def _forget_before(self, place: int) -> None:
        if place > self._kept_from:
            del self._kept[: (place - self._kept_from) * SAMPLE_BYTES]
            self._kept_from = place


def _samples(milliseconds: int) -> int:
    return milliseconds * SAMPLE_RATE_HZ // 1000


def _milliseconds(samples: int) -> int:
    return samples * 1000 // SAMPLE_RATE_HZ
