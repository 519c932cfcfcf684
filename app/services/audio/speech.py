"""Whether somebody speaks in a recording."""

from collections import deque

import numpy as np

from app.services.audio.silero import CHUNK_SAMPLES, Floats, SpeechDetector

# Of any 8 chunks (256 ms) at least 4 must sound like speech: a short "no" has 6 or more,
# while noise, hum, tones and clicks stay below the threshold in every chunk.
_THRESHOLD = 0.5
_WINDOW_CHUNKS = 8
_SPEECH_CHUNKS = 4
_SILENCE = 1e-4
"""A muted microphone: -80 dB of full scale. No need to look closer."""


class SpeechSearch:
    """Listens to one recording from its beginning, until it is certain."""

    def __init__(self) -> None:
        self.has_found = False
        """True once somebody was heard; the rest is not listened to."""
        self._detector = SpeechDetector()
        self._recent: deque[bool] = deque(maxlen=_WINDOW_CHUNKS)

    def feed(self, block: Floats) -> bool:
        """Listen to the next samples of 16 kHz; return whether somebody was heard so far."""
        if self.has_found:
            return True
        if np.abs(block).max(initial=0) < _SILENCE:
            self._recent.clear()
            return False
        whole_chunks = np.pad(block, (0, -len(block) % CHUNK_SAMPLES))
        for probability in self._detector.probabilities(whole_chunks):
            self._recent.append(bool(probability >= _THRESHOLD))
            if sum(self._recent) >= _SPEECH_CHUNKS:
                self.has_found = True
        return self.has_found
