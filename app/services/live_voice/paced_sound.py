"""The sound of a response, handed over as it can be played: at one rate, and not too far ahead."""

from collections import deque
from collections.abc import Iterator

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
_BYTES_A_SECOND = SOUND_RATE_HZ * _SAMPLE_BYTES
_KEPT_MS = 1000
"""How much is kept of what was played by our clock: the client's may be behind it."""


class SoundBlocks:
    """Cuts the sound of an answer into short blocks of 24 kHz, signed 16-bit little-endian mono."""

    def __init__(self) -> None:
        self._resampler: StreamResampler | None = None

    def cut(self, pcm: bytes, sample_rate_hz: int) -> Iterator[bytes]:
        """Yield the next sound in blocks."""
        if sample_rate_hz != SOUND_RATE_HZ:
            self._resampler = self._resampler or StreamResampler(sample_rate_hz, SOUND_RATE_HZ)
            samples = np.frombuffer(pcm, "<i2").astype(np.float32) / _FULL_SCALE
            pcm = to_pcm16(self._resampler.feed(samples))
        size = _BLOCK_SAMPLES * _SAMPLE_BYTES
        for start in range(0, len(pcm), size):
            yield pcm[start : start + size]


class PacedSound:
    """Paces the blocks of one response, and keeps those that are not played yet."""

    def __init__(self) -> None:
        self.playback = Playback()
        self._stopped = anyio.Event()
        self._kept: deque[bytes] = deque()
        self._kept_from = 0
        """Where the kept blocks begin, in bytes from the beginning."""

    @property
    def is_stopped(self) -> bool:
        """True once nobody wants any more of it."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Hand over nothing more."""
        self._stopped.set()
        self.playback.stop()

    async def wait_for_room(self) -> bool:
        """Wait until not more than 4 s are ahead; return False where it is stopped."""
        while not self.is_stopped and (ahead := self.playback.ahead_seconds) > AHEAD_SECONDS:
            with anyio.move_on_after(ahead - AHEAD_SECONDS):
                await self._stopped.wait()
        return not self.is_stopped

    def send(self, block: bytes) -> None:
        """Take note that a block is handed over."""
        self.playback.send(len(block) / _BYTES_A_SECOND)
        self._kept.append(block)
        played = (self.playback.played_ms - _KEPT_MS) * _BYTES_A_SECOND // 1000
        while self._kept and self._kept_from + len(self._kept[0]) <= played:
            self._kept_from += len(self._kept.popleft())

    def take_back(self, byte_count: int) -> None:
        """Take note that the last bytes were not sent after all."""
        self.playback.take_back(byte_count / _BYTES_A_SECOND)

    def blocks_after(self, played_ms: int) -> Iterator[bytes]:
        """Yield what was handed over behind the first milliseconds, sent or not."""
        place = played_ms * SOUND_RATE_HZ // 1000 * _SAMPLE_BYTES
        start = self._kept_from
        for block in self._kept:
            if rest := block[max(0, place - start) :]:
                yield rest
            start += len(block)
