"""One continuous MP3 stream from pieces of sound."""

from typing import Protocol, cast

import anyio
from anyio import to_thread

_QUALITY = 7
"""LAME's scale from 2 (best) to 7 (fastest), which costs about 2 ms of CPU for a second."""


_INLINE_BYTES = 16_384
"""About 1 ms of work; a thread is worth its trip for more."""
_BLOCK_BYTES = 96_000
_threads = anyio.CapacityLimiter(1)
"""LAME lets other Python go on, so one thread uses a second core and leaves the first free."""


class _Lame(Protocol):
    """The part of `lameenc.Encoder` that is used; the package has no types."""

    def silence(self) -> None: ...
    def set_channels(self, channels: int) -> None: ...
    def set_in_sample_rate(self, hz: int) -> None: ...
    def set_out_sample_rate(self, hz: int) -> None: ...
    def set_bit_rate(self, kbps: int) -> None: ...
    def set_quality(self, quality: int) -> None: ...
    def encode(self, pcm: bytes) -> bytearray: ...
    def flush(self) -> bytearray: ...


class Mp3Encoder:
    """Encodes one reply; MP3 files put one after another would have a hole at each seam.

    The stream has no Xing or ID3 header, which would tell a player that it ends with its first
    piece. It plays one encoder delay (about 60 ms at 24 kHz) longer than the sound.
    """

    def __init__(self, sample_rate_hz: int, bit_rate_kbps: int = 64) -> None:
        import lameenc  # with the other packages of voice turns, at the first of them

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
        """Have LAME make its tables: half a millisecond, while there is no sound to wait for it."""
        self._encoder.encode(b"")

    def encode(self, pcm: bytes) -> bytes:
        """Return the frames that `pcm` completes, often none.

        `pcm` is signed 16-bit little-endian mono in whole samples; `ValueError` if it is not.
        """
        if len(pcm) % 2:
            raise ValueError("half a sample")
        if not pcm:
            return b""
        self._has_begun = True
        return bytes(self._encoder.encode(pcm))

    def finish(self) -> bytes:
        """Return the last frames, empty where there was no sound. Nothing may follow."""
        return bytes(self._encoder.flush()) if self._has_begun else b""


async def encode(encoder: Mp3Encoder, pcm: bytes) -> bytes:
    """Return `encoder.encode(pcm)`; what takes long is done beside the event loop.

    Many encoders take turns, two seconds of sound each. Cancelled between them, `encoder` is of no
    more use.
    """
    if len(pcm) <= _INLINE_BYTES:
        return encoder.encode(pcm)
    mp3 = bytearray()
    for start in range(0, len(pcm), _BLOCK_BYTES):
        block = pcm[start : start + _BLOCK_BYTES]
        mp3 += await to_thread.run_sync(encoder.encode, block, limiter=_threads)
    return bytes(mp3)
