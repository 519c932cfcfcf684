"""Reads sound files with FFmpeg's libraries, on the assumption that they are hostile.

The demuxer is the one that was sniffed, it sees memory only, and the decoders are those that
recordings use. Nothing here holds more than a second of decoded sound.
"""

import io
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from app.core.errors import AppError
from app.services.audio.errors import AudioUnreadable
from app.services.audio.pcm_wav import PcmWav, refuse_odd_sound
from app.services.audio.resample import Resampler
from app.services.audio.sanitize import sanitize_audio
from app.services.audio.silero import Floats
from app.services.audio.sniff import Sniffed
from app.services.ports import AudioFormat

if TYPE_CHECKING:
    from av import AudioCodecContext, AudioFrame, AudioStream, Packet
    from av.container import InputContainer

    SoundPacket = Packet[AudioStream]

_HEAD_PACKETS = 512
_HEAD_BYTES = 128 << 10
"""Ten seconds of most recordings: enough to hear somebody, and little to keep."""
# Ten minutes of 96 kHz stereo: more is refused, however few bytes describe it.
_MAX_VALUES = 600 * 96_000 * 2
# Ten minutes of Opus take 0.25 s to measure and 4 s to listen to.
_CPU_SECONDS_TO_MEASURE = 2.0
_CPU_SECONDS_TO_DECODE = 15.0

_PADDING_SECONDS = 0.25

_DEMUXERS = {
    AudioFormat.WAV: "wav",
    AudioFormat.MP3: "mp3",
    AudioFormat.MP4: "mov",
    AudioFormat.WEBM: "matroska",
    AudioFormat.OGG: "ogg",
    AudioFormat.FLAC: "flac",
}
_PCM = (
    "pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le,pcm_alaw,pcm_mulaw,"
    "adpcm_ms,adpcm_ima_wav"
)
_DECODERS = {
    AudioFormat.WAV: _PCM,
    AudioFormat.MP3: "mp3float,mp3",
    AudioFormat.MP4: "aac,alac,mp3float,mp3,opus",
    AudioFormat.WEBM: "opus,vorbis,aac,mp3float,mp3,pcm_s16le,pcm_f32le",
    AudioFormat.OGG: "opus,vorbis,flac,speex",
    AudioFormat.FLAC: "flac",
}

_PROBING = {AudioFormat.WAV: {"probesize": "4096"}}
"""FFmpeg looks for DTS in a WAV, which takes 6 ms; by itself it would look at 5 MB."""


class Sound:
    """The first audio stream of an open file."""

    def __init__(self, data: bytes, sniffed: Sniffed, opened: "_Opened") -> None:
        self._data = data
        self._sniffed = sniffed
        self._opened = opened
        self._head: list[SoundPacket] = []
        """The first packets, which need not be read twice."""
        self._has_more = False

    def measure(self, *, limit_seconds: float) -> float:
        """Return how long it plays, in seconds, without decoding it.

        Counted from the packets, whatever a header promises; 0 where there is no packet.
        Gives up soon after `limit_seconds`, so anything above means "longer". Comes first, and
        once. Raises `AudioUnreadable`.
        """
        with _readable():
            seconds = self._measure(limit_seconds)
            self._opened.memory.check()
            return seconds

    def _measure(self, limit_seconds: float) -> float:
        container, stream = self._opened.container, self._opened.stream
        first, last, total, kept_bytes = 0.0, 0.0, 0.0, 0
        unit = float(stream.time_base or 0)
        codec = stream.codec_context
        is_opus = codec.name == "opus"
        least = codec.frame_size / codec.sample_rate  # whatever the container says
        for index, packet in enumerate(_packets(container, stream)):
            if is_opus:
                least = _opus_seconds(bytes(packet))
            seconds = max((packet.duration or 0) * unit, least)
            total += seconds
            if packet.pts is not None:
                begin = packet.pts * unit
                first = begin if index == 0 else min(first, begin)
                last = max(last, begin + seconds)
            if total > limit_seconds or last - first > limit_seconds:
                break
            kept_bytes += packet.size
            if index < _HEAD_PACKETS and kept_bytes <= _HEAD_BYTES:
                self._head.append(packet)
            else:
                self._has_more = True
        counted = max(total, last - first)
        promised = (container.duration or 0) / 1_000_000
        # A promise that the count bears out leaves out what the encoder padded.
        return promised if 0 <= counted - promised <= _PADDING_SECONDS else counted

    def blocks(self) -> Generator[Floats]:
        """Yield it as 16 kHz mono in -1 to 1, half a second at a time, once it is measured.

        A file whose end is cut off or broken just ends sooner. Raises `AudioUnreadable`, at the
        end too, where more packets were broken than sound.
        """
        with _readable():
            mixer = _Mixer()
            sound, broken, values = 0, 0, 0
            for packet in self._packets():
                frames = _frames(self._opened.stream, packet)
                sound, broken = sound + len(frames), broken + (not frames)
                for frame in frames:
                    values += frame.samples * frame.layout.nb_channels
                    yield from mixer.mix(frame)
                if values > _MAX_VALUES:
                    raise AudioUnreadable("This recording has too many channels or samples.")
            yield from mixer.finish()
            if broken > sound:
                raise AudioUnreadable("The sound in this file is broken.")

    def _packets(self) -> Iterator["SoundPacket"]:
        yield from self._head
        if self._has_more:
            reopened = _open(self._data, self._sniffed, cpu_seconds=_CPU_SECONDS_TO_DECODE)
            with reopened.container:
                packets = _packets(reopened.container, reopened.stream)
                yield from islice(packets, len(self._head), None)
                reopened.memory.check()


@contextmanager
def open_sound(data: bytes, sniffed: Sniffed) -> Generator[Sound | PcmWav]:
    """Open `data` while the block runs. Raises `AudioUnreadable`."""
    plain = sanitize_audio(data, sniffed)
    if sniffed.format is AudioFormat.WAV and (sound := PcmWav.of(plain)):
        yield sound
        return
    with _readable():
        opened = _open(plain, sniffed, cpu_seconds=_CPU_SECONDS_TO_MEASURE)
    with opened.container:
        yield Sound(plain, sniffed, opened)


class _Mixer:
    """Mixes to 16 kHz mono; a stream may change its rate and channels on the way."""

    def __init__(self) -> None:
        self._resampler: Resampler | None = None
        self._kind: tuple[int, str, str] | None = None

    def mix(self, frame: "AudioFrame") -> Iterator[Floats]:
        refuse_odd_sound(frame.sample_rate, frame.layout.nb_channels)
        kind = frame.sample_rate, frame.layout.name, frame.format.name
        if self._resampler is None or kind != self._kind:
            yield from self.finish()
            self._kind = kind
            self._resampler = Resampler(frame.sample_rate)
        yield from self._resampler.feed(mono(frame))

    def finish(self) -> Iterator[Floats]:
        if self._resampler:
            yield from self._resampler.finish()
        self._resampler = None


def mono(frame: "AudioFrame") -> Floats:
    """Return the mean of the channels; full scale is 1."""
    if frame.format.name == "fltp" and frame.layout.nb_channels == 1:  # Opus, AAC, MP3, Vorbis
        return np.frombuffer(bytes(frame.planes[0]), np.float32, frame.samples)
    values = frame.to_ndarray()  # channels by samples, or all in one row by turns
    channels = frame.layout.nb_channels
    if values.dtype.kind == "f":
        samples = values.astype(np.float32, copy=False)
    else:
        full_scale = np.float32(1 << (8 * values.dtype.itemsize - 1))
        samples = values.astype(np.float32) / full_scale
        if values.dtype.kind == "u":
            samples -= 1
    if channels == 1:
        return samples.reshape(-1)
    if frame.format.is_planar:
        return samples.mean(axis=0)
    return samples.reshape(-1, channels).mean(axis=1)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file in FFmpeg's hands."""

    memory: "_Memory"
    container: "InputContainer"
    stream: "AudioStream"


@contextmanager
def _readable() -> Generator[None]:
    """Turn whatever FFmpeg raises into `AudioUnreadable`."""
    try:
        yield
    except AppError:
        raise
    except Exception as error:  # its binding raises a dozen kinds, ValueError included
        raise AudioUnreadable("This file cannot be read as sound.") from error


def _open(plain: bytes, sniffed: Sniffed, *, cpu_seconds: float) -> _Opened:
    """Open what `plain_sound` returned and find its first audio stream."""
    import av

    memory = _Memory(plain, cpu_seconds)
    container = av.open(
        memory,
        mode="r",
        format=_DEMUXERS[sniffed.format],
        container_options={
            "codec_whitelist": _DECODERS[sniffed.format],
            "format_whitelist": _DEMUXERS[sniffed.format],
            "protocol_whitelist": "none",
            "max_streams": "16",
            **_PROBING.get(sniffed.format, {}),
        },
        metadata_errors="replace",
        io_open=_refuse_to_open,
    )
    try:
        return _Opened(memory, container, _first_audio_stream(container, _DECODERS[sniffed.format]))
    except BaseException:
        container.close()
        raise


class _Memory(io.BytesIO):
    """A file in memory that seems to end where reading it costs too much.

    The thread's own CPU time counts, so a busy machine refuses nobody.
    """

    def __init__(self, data: bytes, cpu_seconds: float) -> None:
        super().__init__(data)
        self._deadline = time.thread_time() + cpu_seconds
        self._has_expired = False

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._deadline:
            self._has_expired = True
            return b""
        return super().read(size)

    def check(self) -> None:
        """Raise `AudioUnreadable` if the end that FFmpeg saw was not the real one."""
        if self._has_expired:
            raise AudioUnreadable("This file takes too long to read.")


def _first_audio_stream(container: "InputContainer", decoders: str) -> "AudioStream":
    if not container.streams.audio:
        raise AudioUnreadable("There is no sound in this file.")
    stream = container.streams.audio[0]
    if stream.codec_context.name not in decoders.split(","):
        raise AudioUnreadable("The sound in this file is of a kind that is not supported.")
    stream.codec_context.thread_count = 1
    refuse_odd_sound(stream.codec_context.sample_rate, stream.codec_context.channels)
    return stream


def _refuse_to_open(*_: object) -> NoReturn:
    raise PermissionError("a sound file may not refer to another")


def _packets(container: "InputContainer", stream: "AudioStream") -> Iterator["SoundPacket"]:
    """Yield the packets with sound in them, up to the first place that cannot be read.

    More bytes than the file has are a compression bomb: Matroska may deflate its packets.
    """
    from av.error import FFmpegError

    remaining_bytes = 2 * container.size + 65536
    try:
        for packet in container.demux(stream):
            remaining_bytes -= packet.size
            if remaining_bytes < 0:
                raise AudioUnreadable("The sound in this file is compressed twice.")
            if packet.size:
                yield packet
    except FFmpegError:
        return


def _frames(stream: "AudioStream", packet: "SoundPacket") -> list["AudioFrame"]:
    """Decode `packet`, of this opening of the file or another; empty where it is broken."""
    from av.error import FFmpegError

    try:
        return stream.decode(packet)  # pyright: ignore[reportUnknownMemberType]  # of a bare Packet
    except FFmpegError:
        return []


def frames_of(context: "AudioCodecContext", packet: bytes) -> list["AudioFrame"]:
    """Decode the bytes of one packet; empty where it is broken."""
    from av import Packet
    from av.error import FFmpegError

    try:
        return context.decode(Packet(packet))  # pyright: ignore[reportUnknownMemberType]  # as above
    except FFmpegError:
        return []


def _opus_seconds(packet: bytes) -> float:
    """Return the duration that an Opus packet's first two bytes give (RFC 6716, section 3.1)."""
    configuration, count_code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:  # noqa: PLR2004
        frame_ms = (10, 20, 40, 60)[configuration & 3]
    elif configuration < 16:  # noqa: PLR2004
        frame_ms = (10, 20)[configuration & 1]
    else:
        frame_ms = (2.5, 5, 10, 20)[configuration & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[count_code]
    return frame_ms * frames / 1000
