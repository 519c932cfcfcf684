"""Recordings as they are judged, transcribed and stored: WAV of 16 kHz, mono, 16 bits."""

import struct
from typing import TYPE_CHECKING

from app.services.audio.silero import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from app.services.audio.silero import Floats

SAMPLE_BYTES = 2
HEADER_BYTES = 44
_FULL_SCALE = 32768


def wav_header(pcm_bytes: int) -> bytes:
    """Return what stands before so many bytes of samples."""
    rate, block = SAMPLE_RATE_HZ, SAMPLE_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF", HEADER_BYTES - 8 + pcm_bytes, b"WAVE",
        b"fmt ", 16, 1, 1, rate, rate * block, block, 8 * SAMPLE_BYTES,
        b"data", pcm_bytes,
    )  # fmt: skip


def is_standard_wav(data: bytes) -> bool:
    """Tell whether `data` is such a file, with some samples in it and nothing else."""
    pcm_bytes = len(data) - HEADER_BYTES
    return (
        pcm_bytes > 0
        and pcm_bytes % SAMPLE_BYTES == 0
        and data[:HEADER_BYTES] == wav_header(pcm_bytes)
    )


def duration_seconds(wav: bytes | bytearray) -> float:
    """Return how long a standard file plays."""
    return (len(wav) - HEADER_BYTES) / SAMPLE_BYTES / SAMPLE_RATE_HZ


def to_pcm16(samples: "Floats") -> bytes:
    """Return samples in -1 to 1 as signed 16-bit little-endian."""
    scaled = (samples * _FULL_SCALE).round()
    return scaled.clip(-_FULL_SCALE, _FULL_SCALE - 1).astype("<i2").tobytes()
