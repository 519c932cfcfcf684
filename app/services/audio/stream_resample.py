"""Resample a stream in blocks of any size with a delay of about a millisecond, for live voice.

A polyphase filter: low-pass at nine tenths of the lower rate's half, 24 taps for each output
sample. `resample.py` is faster for whole recordings, and works in blocks of half a second.
"""

from functools import cache
from math import gcd

import numpy as np

from app.services.audio.silero import Floats

_TAPS = 24
"""Of each phase."""
_PASS_BAND = 0.9
_KAISER_BETA = 6.0


class StreamResampler:
    """Resamples one mono stream of `rate_hz` to `to_hz`; both have few common multiples."""

    def __init__(self, rate_hz: int, to_hz: int) -> None:
        common = gcd(rate_hz, to_hz)
        self._up, self._down = to_hz // common, rate_hz // common
        self._filter = None if rate_hz == to_hz else _phases(self._up, self._down)
        self._taps = self._filter.shape[1] if self._filter is not None else 0
        self._waiting = np.zeros(max(0, self._taps - 1), np.float32)
        self._next = 0
        """Of the next output sample: its time in steps of the common multiple of both rates,
        counted from the first input sample that is not finished."""

    def feed(self, samples: Floats) -> Floats:
        """Return what `samples`, in -1 to 1, complete; often one block of the same duration."""
        if self._filter is None or not samples.size:
            return samples
        block = np.concatenate([self._waiting, samples])
        step = block.strides[0]
        shape = (len(block) - self._taps + 1, self._taps)
        # What `sliding_window_view` does, without its checks, which take longer than the filter.
        windows = np.lib.stride_tricks.as_strided(block, shape, (step, step), writeable=False)
        count = max(0, -(-(len(samples) * self._up - self._next) // self._down))
        output = np.empty(count, np.float32)
        for first in range(min(self._up, count)):  # outputs of one phase
            time = self._next + first * self._down
            start, phase = divmod(time, self._up)
            places = range(first, count, self._up)
            chosen = windows[start :: self._down][: len(places)]
            output[first :: self._up] = chosen @ self._filter[phase]
        self._next += count * self._down - len(samples) * self._up
        self._waiting = block[len(samples) :]
        return output


@cache
def _phases(up: int, down: int) -> Floats:
    """Return the taps of each phase, newest input sample last. Shape (up, taps)."""
    taps = _TAPS * max(1, -(-down // up))
    length = taps * up
    times = np.arange(length) - (length - 1) / 2
    cutoff = _PASS_BAND / max(up, down)
    window = np.kaiser(length, _KAISER_BETA)
    prototype = np.sinc(times * cutoff) * window
    prototype *= up / prototype.sum()
    return np.ascontiguousarray(prototype.reshape(taps, up).T[:, ::-1], dtype=np.float32)
