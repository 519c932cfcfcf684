"""Read WAV with 16-bit PCM without FFmpeg: the most common and cheapest upload."""

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Self

import numpy as np

from app.services.audio.errors import AudioUnreadable
from app.services.audio.resample import Resampler
from app.services.audio.sanitize import sanitize_audio
from app.services.audio.silero import Floats
from app.services.audio.sniff import sniff
from app.services.ports import AudioFormat

_PCM, _EXTENSIBLE = 1, 0xFFFE
_PCM_GUID = b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
_SAMPLE_BYTES = 2
_FULL_SCALE = np.float32(32768)
_READ_SECONDS = 0.5
_MAX_CHANNELS = 8
_MIN_RATE_HZ = 4_000
_MAX_RATE_HZ = 192_000


@dataclass(frozen=True, slots=True)
class PcmWav:
    """The PCM of a WAV file; implements the same methods as `decode.Sound`."""

    rate_hz: int
    channels: int
    pcm: memoryview

    @classmethod
    def of(cls, plain: bytes) -> Self | None:
        """Parse a sanitized WAV file; `None` where it needs FFmpeg.

        Raises `AudioUnreadable`.
        """
        format_bytes = int.from_bytes(plain[16:20], "little")
        body = 20 + format_bytes
        if format_bytes < 16:  # noqa: PLR2004  # size of the format without extensions
            return None
        kind, channels, rate_hz, _, align, bits = struct.unpack_from("<HHIIHH", plain, 20)
        if kind == _EXTENSIBLE and plain[44:body] == _PCM_GUID:
            kind = _PCM
        if (kind, bits, align) != (_PCM, 8 * _SAMPLE_BYTES, channels * _SAMPLE_BYTES):
            return None
        refuse_odd_sound(rate_hz, channels)
        whole_bytes = (len(plain) - body - 8) // align * align
        return cls(rate_hz, channels, memoryview(plain)[body + 8 :][:whole_bytes])

    def measure(self, *, limit_seconds: float) -> float:  # noqa: ARG002  # not needed: the duration is in the header
        """Return the duration in seconds."""
        return len(self.pcm) / (_SAMPLE_BYTES * self.channels * self.rate_hz)

    def blocks(self) -> Generator[Floats]:
        """Yield 16 kHz mono samples in -1 to 1, in blocks of 0.5 s."""
        resampler = Resampler(self.rate_hz)
        step = int(self.rate_hz * _READ_SECONDS) * self.channels * _SAMPLE_BYTES
        for start in range(0, len(self.pcm), step):
            values = np.frombuffer(self.pcm[start : start + step], "<i2").astype(np.float32)
            if self.channels > 1:
                values = values.reshape(-1, self.channels).mean(axis=1)
            yield from resampler.feed(values / _FULL_SCALE)
        yield from resampler.finish()


def open_samples(data: bytes) -> PcmWav | None:
    """Return a file that needs no decoder, and `None` for others. Raises `AudioUnreadable`."""
    sniffed = sniff(data)
    if sniffed is None or sniffed.format is not AudioFormat.WAV:
        return None
    return PcmWav.of(sanitize_audio(data, sniffed))


def refuse_odd_sound(rate_hz: int, channels: int) -> None:
    """Raise `AudioUnreadable` where no recorder makes such sound."""
    if not (_MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ and 1 <= channels <= _MAX_CHANNELS):
        raise AudioUnreadable("The sample rate or the channels of this file are not supported.")
