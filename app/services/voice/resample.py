"""Brings sound to the rate of the speech detector, half a second at a time.

A block's spectrum is cut off, or filled up with nothing, at the lower of the two rates. That is
good enough to tell whether somebody speaks, and takes a fifth of setting up FFmpeg's filters.
"""

from collections.abc import Iterator

import numpy as np

from app.services.voice.silero import SAMPLE_RATE_HZ, Floats

BLOCK_SAMPLES = 16 * 512
"""A whole number of the detector's chunks."""
_MARGIN_SAMPLES = 224
"""Of its neighbours on either side of a block; 8640 samples in all have small factors only."""


class Resampler:
    """Follows one stream of `rate_hz`, mono."""

    def __init__(self, rate_hz: int) -> None:
        self._ratio = rate_hz / SAMPLE_RATE_HZ
        self._margin = 0 if rate_hz == SAMPLE_RATE_HZ else _MARGIN_SAMPLES
        self._margin_in = round(self._margin * self._ratio)
        self._window_in = round((BLOCK_SAMPLES + 2 * self._margin) * self._ratio)
        self._taper = np.ones(self._window_in, np.float32)
        fade = np.sin(np.linspace(0, np.pi / 2, self._margin_in, dtype=np.float32)) ** 2
        self._taper[: self._margin_in] = fade
        self._taper[self._window_in - self._margin_in :] = fade[::-1]
        self._waiting = [np.zeros(self._margin_in, np.float32)]
        self._begin, self._end = -self._margin_in, 0
        """Which samples of the stream wait."""
        self._blocks = 0

    def feed(self, samples: Floats) -> Iterator[Floats]:
        """Yield the blocks of 16 kHz that `samples` complete, often none."""
        self._wait(samples)
        while self._end >= self._next_begin() + self._window_in:
            yield self._next_block()

    def finish(self) -> Iterator[Floats]:
        """Yield what is left. Nothing may follow."""
        left = round(self._end / self._ratio) - self._blocks * BLOCK_SAMPLES
        while left > 0:
            missing = self._next_begin() + self._window_in - self._end
            self._wait(np.zeros(missing, np.float32))
            yield self._next_block()[:left]
            left -= BLOCK_SAMPLES

    def _wait(self, samples: Floats) -> None:
        self._waiting.append(samples)
        self._end += len(samples)

    def _next_begin(self) -> int:
        """Return the first sample of the stream that the next block needs."""
        return round(self._blocks * BLOCK_SAMPLES * self._ratio) - self._margin_in

    def _next_block(self) -> Floats:
        waiting = np.concatenate(self._waiting)
        window = waiting[: self._window_in]
        self._blocks += 1
        self._waiting = [waiting[self._next_begin() - self._begin :]]
        self._begin = self._next_begin()
        # What is no number, or louder than can be, would spoil all of the block.
        window = np.clip(np.nan_to_num(window), -1, 1)
        return self._resampled(window) if self._margin else window

    def _resampled(self, window: Floats) -> Floats:
        wanted = BLOCK_SAMPLES + 2 * self._margin
        spectrum = np.fft.rfft(window * self._taper)[: wanted // 2 + 1]
        samples = np.fft.irfft(spectrum, wanted)[self._margin : self._margin + BLOCK_SAMPLES]
        return samples.astype(np.float32, copy=False) * np.float32(wanted / self._window_in)
