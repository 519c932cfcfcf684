"""Convert a stream of samples of another rate, width or number of channels, with NumPy alone."""

import numpy as np

from app.services.audio.resample import Resampler
from app.services.audio.samples import to_pcm16
from app.services.audio.silero import Floats
from app.services.ports import SampleFormat

_BLOCK_SECONDS = 0.2
"""Blocks and their margins are whole numbers of samples at every usual rate: they have no seam."""
_MARGIN_DIVISOR = 5


class SampleConverter:
    """Turns pieces of any length into signed 16-bit little-endian mono PCM of `to_hz`."""

    def __init__(self, form: SampleFormat, to_hz: int) -> None:
        self._form = form
        self._half_frame = b""
        block = int(to_hz * _BLOCK_SECONDS)
        self._resampler = Resampler(form.rate_hz, to_hz, block, block // _MARGIN_DIVISOR)

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes; return the PCM that they complete, often none."""
        piece = self._half_frame + piece
        length = len(piece) // self._form.frame_bytes * self._form.frame_bytes
        self._half_frame = piece[length:]
        if not length:
            return b""
        samples = _decode(piece[:length], self._form)
        if self._form.channels > 1:
            samples = samples.reshape(-1, self._form.channels).mean(axis=1)
        return b"".join(map(to_pcm16, self._resampler.feed(samples)))

    def finish(self) -> bytes:
        """Return the rest; half a frame is dropped. `feed` must not be called afterwards."""
        return b"".join(map(to_pcm16, self._resampler.finish()))


def _decode(piece: bytes, form: SampleFormat) -> Floats:
    """Return samples in -1 to 1."""
    if form.is_float:
        values = np.frombuffer(piece, f"<f{form.bits // 8}")
        with np.errstate(invalid="ignore", over="ignore"):
            return values.astype(np.float32)
    if form.bits == 8:  # noqa: PLR2004  # the only unsigned width
        return (np.frombuffer(piece, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if form.bits == 24:  # noqa: PLR2004
        wide = np.zeros((len(piece) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(piece, np.uint8).reshape(-1, 3)
        values = wide.reshape(-1).view("<i4")
    else:
        values = np.frombuffer(piece, f"<i{form.bits // 8}")
    return values.astype(np.float32) * np.float32(-1 / np.iinfo(values.dtype).min)
