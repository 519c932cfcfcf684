"""Encode one stream of synthesized speech in the formats that clients ask for, while it comes."""

import struct
from typing import Protocol

from app.services.audio.containers import OggOpusPages, adts_frame
from app.services.audio.convert import SampleConverter
from app.services.audio.flac import FlacEncoder
from app.services.ports import SampleFormat
from app.services.sandbox.sandbox import Sandbox
from app.services.voice.mp3 import Mp3Encoder, encode
from app.services.voice.speech_formats import SpeechFormat

RATE_HZ = 24_000
"""Of all formats."""
_UNKNOWN_BYTES = 0xFFFFFFFF
_OPUS_SKIPPED_SAMPLES = 312
"""How far libopus looks ahead, at 48 kHz."""
_ENCODE = "app.services.audio.encode:encode_samples"
"""Named, not imported: the server has no part of FFmpeg."""
_CONTEXT_FRAMES = 5
"""What an encoder needs before a frame to be where it was: 100 ms of Opus, 210 ms of AAC."""
_FIRST_FRAMES, _MOST_FRAMES = 10, 100
"""Of a job: the beginning is encoded soon, and what follows in longer pieces."""


class SpeechEncoder(Protocol):
    """Encodes one stream of signed 16-bit little-endian mono PCM."""

    async def encode(self, pcm: bytes) -> bytes:
        """Return what `pcm`, whole samples, completes; often nothing."""
        ...

    async def finish(self) -> bytes:
        """Return the rest. `encode` must not be called afterwards."""
        ...


def make_encoder(
    form: SpeechFormat, rate_hz: int, sandbox: Sandbox, caller: tuple[str, str]
) -> SpeechEncoder:
    """Return an encoder of PCM of `rate_hz`; `caller` is who its jobs are run for, if it has any.

    Jobs raise `TooManyJobs`, `WorkerBusy`, `WorkerUnavailable` and `JobCrashed`.
    """
    match form:
        case SpeechFormat.MP3:
            inner: SpeechEncoder = _Mp3(RATE_HZ)
        case SpeechFormat.FLAC:
            inner = _Flac()
        case SpeechFormat.OPUS:
            inner = _Opus(sandbox, caller)
        case SpeechFormat.AAC:
            inner = _Aac(sandbox, caller)
        case SpeechFormat.WAV | SpeechFormat.PCM:
            inner = _Samples(has_header=form is SpeechFormat.WAV)
    return inner if rate_hz == RATE_HZ else _Converted(inner, rate_hz)


class _Converted:
    """Brings samples of another rate to ours."""

    def __init__(self, inner: SpeechEncoder, rate_hz: int) -> None:
        self._inner = inner
        self._converter = SampleConverter(SampleFormat(rate_hz, 1, 16), RATE_HZ)

    async def encode(self, pcm: bytes) -> bytes:
        return await self._inner.encode(self._converter.feed(pcm))

    async def finish(self) -> bytes:
        return await self._inner.encode(self._converter.finish()) + await self._inner.finish()


class _Samples:
    """Samples as they are, behind a WAV header whose sizes are unknown, as OpenAI sends it."""

    def __init__(self, *, has_header: bool) -> None:
        self._head = b""
        if has_header:
            self._head = struct.pack(
                "<4sI4s4sIHHIIHH4sI",
                b"RIFF", _UNKNOWN_BYTES, b"WAVE",
                b"fmt ", 16, 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16,
                b"data", _UNKNOWN_BYTES,
            )  # fmt: skip

    async def encode(self, pcm: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + pcm

    async def finish(self) -> bytes:
        return self._head


class _Mp3:
    def __init__(self, rate_hz: int) -> None:
        self._encoder = Mp3Encoder(rate_hz)

    async def encode(self, pcm: bytes) -> bytes:
        return await encode(self._encoder, pcm)

    async def finish(self) -> bytes:
        return self._encoder.finish()


class _Flac:
    def __init__(self) -> None:
        self._encoder = FlacEncoder()

    async def encode(self, pcm: bytes) -> bytes:
        return self._encoder.encode(pcm)

    async def finish(self) -> bytes:
        return self._encoder.finish()


class _Packets:
    """Frames that jobs of the worker encode: each begins some frames before what is new."""

    codec: str
    frame_samples: int

    def __init__(self, sandbox: Sandbox, caller: tuple[str, str]) -> None:
        self._sandbox = sandbox
        self._caller = caller
        self._pcm = bytearray()
        """The context, and what is not encoded yet."""
        self._context = 0
        self._job_frames = _FIRST_FRAMES
        self.samples = 0

    async def packets(self, pcm: bytes) -> list[bytes]:
        """Return the packets of what is complete."""
        self._pcm += pcm
        self.samples += len(pcm) // 2
        size = 2 * self.frame_samples
        frames = len(self._pcm) // size
        if frames - self._context < self._job_frames:
            return []
        self._job_frames = min(2 * self._job_frames, _MOST_FRAMES)
        return await self._run(frames, is_last=False)

    async def last_packets(self) -> list[bytes]:
        """Return the packets of the rest, and what the encoder keeps back."""
        size = 2 * self.frame_samples
        self._pcm += bytes(-len(self._pcm) % size + size)
        return await self._run(len(self._pcm) // size, is_last=True)

    async def _run(self, frames: int, *, is_last: bool) -> list[bytes]:
        size = 2 * self.frame_samples
        fields = {"codec": self.codec, "context": self._context, "is_last": is_last}
        payload = bytes(self._pcm[: frames * size])
        output = await self._sandbox.run(_ENCODE, fields, payload, self._caller)
        packets: list[bytes] = []
        start = 0
        for length in output.fields["lengths"]:
            packets.append(output.payload[start : start + length])
            start += length
        encoded = self._context + len(packets)
        context = min(_CONTEXT_FRAMES, encoded)
        del self._pcm[: (encoded - context) * size]
        self._context = context
        return packets


class _Opus(_Packets):
    codec, frame_samples = "opus", 480

    def __init__(self, sandbox: Sandbox, caller: tuple[str, str]) -> None:
        super().__init__(sandbox, caller)
        self._pages = OggOpusPages(RATE_HZ, self.frame_samples, _OPUS_SKIPPED_SAMPLES)
        self._head = self._pages.begin()

    async def encode(self, pcm: bytes) -> bytes:
        packets = await self.packets(pcm)
        head, self._head = (self._head, b"") if packets else (b"", self._head)
        return head + self._pages.add(packets)

    async def finish(self) -> bytes:
        pages = self._pages.add(await self.last_packets())
        return self._head + pages + self._pages.end(self.samples)


class _Aac(_Packets):
    codec, frame_samples = "aac", 1024

    async def encode(self, pcm: bytes) -> bytes:
        return b"".join(map(adts_frame, await self.packets(pcm)))

    async def finish(self) -> bytes:
        return b"".join(map(adts_frame, await self.last_packets()))
