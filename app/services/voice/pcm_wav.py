"""WAV with 16-bit PCM, which needs no decoder: what programs send, and what costs least."""

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Self

import numpy as np

from app.services.voice.resample import Resampler
from app.services.voice.silero import Floats

_PCM, _EXTENSIBLE = 1, 0xFFFE
_PCM_GUID = b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
_SAMPLE_BYTES = 2
_FULL_SCALE = np.float32(32768)
_READ_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class PcmWav:
    """A file's sound; fulfils what `decode.Sound` does."""

    rate_hz: int
    channels: int
    pcm: memoryview

    @classmethod
    def of(cls, plain: bytes) -> Self | None:
        """Read what `plain_sound` returned; `None` where it takes FFmpeg to."""
        format_bytes = int.from_bytes(plain[16:20], "little")
        body = 20 + format_bytes
        if format_bytes < 16:  # noqa: PLR2004  # of the format without extensions
            return None
        kind, channels, rate_hz, _, align, bits = struct.unpack_from("<HHIIHH", plain, 20)
        if kind == _EXTENSIBLE and plain[44:body] == _PCM_GUID:
            kind = _PCM
        if (kind, bits, align) != (_PCM, 8 * _SAMPLE_BYTES, channels * _SAMPLE_BYTES):
            return None
        whole_bytes = (len(plain) - body - 8) // align * align if align else 0
        return cls(rate_hz, channels, memoryview(plain)[body + 8 :][:whole_bytes])

    def measure(self, *, limit_seconds: float) -> float:  # noqa: ARG002  # it costs nothing
        """Return how long it plays, in seconds."""
        return len(self.pcm) / (_SAMPLE_BYTES * self.channels * self.rate_hz)

    def blocks(self) -> Generator[Floats]:
        """Yield it as 16 kHz mono in -1 to 1, half a second at a time."""
        resampler = Resampler(self.rate_hz)
        step = int(self.rate_hz * _READ_SECONDS) * self.channels * _SAMPLE_BYTES
        for start in range(0, len(self.pcm), step):
            values = np.frombuffer(self.pcm[start : start + step], "<i2").astype(np.float32)
            if self.channels > 1:
                values = values.reshape(-1, self.channels).mean(axis=1)
            yield from resampler.feed(values / _FULL_SCALE)
        yield from resampler.finish()
