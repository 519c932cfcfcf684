"""Encode PCM blocks to one continuous MP3 stream, with LAME."""

from typing import Protocol, cast

import anyio
from anyio import to_thread

_QUALITY = 7
"""LAME's scale from 2 (best) to 7 (fastest): 7 costs about 2 ms of CPU per second of audio."""
_INLINE_BYTES = 16_384
"""About 1 ms of work; larger blocks are encoded in a thread."""
_BLOCK_BYTES = 96_000
_threads = anyio.CapacityLimiter(1)
"""LAME releases the GIL, so one thread uses a second core and leaves the first one free."""


class _Lame(Protocol):
    """The methods of `lameenc.Encoder` that are used; the package has no types."""

    def silence(self) -> None: ...
    def set_channels(self, channels: int) -> None: ...
    def set_in_sample_rate(self, hz: int) -> None: ...
    def set_out_sample_rate(self, hz: int) -> None: ...
    def set_bit_rate(self, kbps: int) -> None: ...
    def set_quality(self, quality: int) -> None: ...
    def encode(self, pcm: bytes) -> bytearray: ...
    def flush(self) -> bytearray: ...


class Mp3Encoder:
    """Encodes one reply as one stream; separate MP3 files would have a gap at each seam.

    The stream has no Xing or ID3 header: with the duration of the first piece in it, a player would
    stop there. It plays one encoder delay (about 60 ms at 24 kHz) longer than the PCM.
    """

    def __init__(self, sample_rate_hz: int, bit_rate_kbps: int = 64) -> None:
        import lameenc  # imported at the first voice turn

        encoder = cast("_Lame", lameenc.Encoder())  # pyright: ignore[reportUnknownMemberType]
        encoder.silence()
        encoder.set_channels(1)
        encoder.set_in_sample_rate(sample_rate_hz)
        encoder.set_out_sample_rate(sample_rate_hz)
        encoder.set_bit_rate(bit_rate_kbps)
        encoder.set_quality(_QUALITY)
        self._encoder = encoder
        self._has_begun = False

    def start(self) -> None:
        """Initialize LAME's tables, which takes 0.5 ms, before the first PCM arrives."""
        self._encoder.encode(b"")

    def encode(self, pcm: bytes) -> bytes:
        """Return the MP3 frames that `pcm` completes, often none.

        `pcm` is signed 16-bit little-endian mono. Raises `ValueError` for half a sample.
        """
        if len(pcm) % 2:
            raise ValueError("the PCM ends with half a sample")
        if not pcm:
            return b""
        self._has_begun = True
        return bytes(self._encoder.encode(pcm))

    def finish(self) -> bytes:
        """Return the last frames, empty without any PCM. `encode` must not be called afterwards."""
        return bytes(self._encoder.flush()) if self._has_begun else b""


async def encode(encoder: Mp3Encoder, pcm: bytes) -> bytes:
    """Return `encoder.encode(pcm)`; large blocks are encoded in a thread.

    Encoders share one thread and alternate every 2 s of audio. If it is cancelled in between,
    `encoder` must not be used any more.
    """
    if len(pcm) <= _INLINE_BYTES:
        return encoder.encode(pcm)
    mp3 = bytearray()
    for start in range(0, len(pcm), _BLOCK_BYTES):
        block = pcm[start : start + _BLOCK_BYTES]
        mp3 += await to_thread.run_sync(encoder.encode, block, limiter=_threads)
    return bytes(mp3)
