"""The sound of an answer, handed over as it can be played: at one rate, and not too far ahead."""

from collections.abc import AsyncGenerator, Iterator

import anyio
import numpy as np

from app.services.audio.samples import to_pcm16
from app.services.audio.stream_resample import StreamResampler
from app.services.live_voice.playback import AHEAD_SECONDS, Playback

SOUND_RATE_HZ = 24_000
_BLOCK_SAMPLES = SOUND_RATE_HZ // 5
"""The most that is handed over at once, so that an interruption need not wait."""
_SAMPLE_BYTES = 2
_FULL_SCALE = np.float32(32768)


class PacedSound:
    """Cuts sound into short blocks of 24 kHz, signed 16-bit little-endian mono, and paces them."""

    def __init__(self) -> None:
        self.playback = Playback()
        self._stopped = anyio.Event()
        self._resampler: StreamResampler | None = None

    @property
    def is_stopped(self) -> bool:
        """True once nobody wants any more of it."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Hand over nothing more."""
        self._stopped.set()

    def take_back(self, byte_count: int) -> None:
        """Take note that the last bytes were not sent after all."""
        self.playback.take_back(byte_count / _SAMPLE_BYTES / SOUND_RATE_HZ)

    async def blocks(self, pcm: bytes, sample_rate_hz: int) -> AsyncGenerator[bytes]:
        """Yield the next sound in blocks, each once it is not more than 4 s ahead.

        Ends where it is stopped.
        """
        for block in self._cut(pcm, sample_rate_hz):
            while not self.is_stopped and (ahead := self.playback.ahead_seconds) > AHEAD_SECONDS:
                with anyio.move_on_after(ahead - AHEAD_SECONDS):
                    await self._stopped.wait()
            if self.is_stopped:
                return
            self.playback.send(len(block) / _SAMPLE_BYTES / SOUND_RATE_HZ)
            yield block

    def _cut(self, pcm: bytes, sample_rate_hz: int) -> Iterator[bytes]:
        if sample_rate_hz != SOUND_RATE_HZ:
            self._resampler = self._resampler or StreamResampler(sample_rate_hz, SOUND_RATE_HZ)
            samples = np.frombuffer(pcm, "<i2").astype(np.float32) / _FULL_SCALE
            pcm = to_pcm16(self._resampler.feed(samples))
        size = _BLOCK_SAMPLES * _SAMPLE_BYTES
        for start in range(0, len(pcm), size):
            yield pcm[start : start + size]
