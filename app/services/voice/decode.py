"""Reads sound files with FFmpeg's libraries, on the assumption that they are hostile.

The demuxer is the one that was sniffed, it sees memory only, and the decoders are those that
recordings use. Nothing here holds more than a second of decoded sound.
"""

import io
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from app.core.errors import AppError
from app.services.ports import AudioFormat
from app.services.voice.errors import AudioUnreadable
from app.services.voice.plain import plain_sound
from app.services.voice.silero import SAMPLE_RATE_HZ, Floats
from app.services.voice.sniff import Sniffed

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler, AudioStream, Packet
    from av.container import InputContainer

    SoundPacket = Packet[AudioStream]

_BLOCK_SAMPLES = 16 * 512
_MAX_CHANNELS = 8
_MIN_RATE_HZ = 4_000
_MAX_RATE_HZ = 192_000
# Ten minutes of 48 kHz stereo: more is not listened to, however few bytes describe it.
_MAX_VALUES = 600 * 48_000 * 2
# Ten minutes of Opus take 0.25 s to measure and 4 s to listen to.
_CPU_SECONDS_TO_MEASURE = 2.0
_CPU_SECONDS_TO_DECODE = 30.0

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


def measure(data: bytes, sniffed: Sniffed, *, limit_seconds: float) -> float:
    """Return how long the first audio stream plays, in seconds, without decoding it.

    Counted from the packets, whatever a header promises; 0 where there is no packet.
    Gives up soon after `limit_seconds`, so anything above means "longer". Raises
    `AudioUnreadable`.
    """
    with _open(data, sniffed, cpu_seconds=_CPU_SECONDS_TO_MEASURE) as (container, stream):
        first, last, total = 0.0, 0.0, 0.0
        unit = float(stream.time_base or 0)
        for index, packet in enumerate(_packets(container, stream)):
            seconds = max((packet.duration or 0) * unit, _least_seconds(packet, stream))
            total += seconds
            if packet.pts is not None:
                begin = packet.pts * unit
                first = begin if index == 0 else min(first, begin)
                last = max(last, begin + seconds)
            if total > limit_seconds or last - first > limit_seconds:
                break
        counted = max(total, last - first)
        promised = (container.duration or 0) / 1_000_000
        # A promise that the count bears out leaves out what the encoder padded.
        return promised if 0 <= counted - promised <= _PADDING_SECONDS else counted


def decode(data: bytes, sniffed: Sniffed) -> Generator[Floats]:
    """Yield the first audio stream as 16 kHz mono in -1 to 1, half a second at a time.

    A file whose end is cut off or broken just ends sooner. Raises `AudioUnreadable`, at the
    end too, where more packets were broken than sound.
    """
    with _open(data, sniffed, cpu_seconds=_CPU_SECONDS_TO_DECODE) as (container, stream):
        mixer = _Mixer()
        sound, broken, values = 0, 0, 0
        for packet in _packets(container, stream):
            frames = _frames(packet)
            sound, broken = sound + len(frames), broken + (not frames)
            for frame in frames:
                values += frame.samples * frame.layout.nb_channels
                yield from mixer.mix(frame)
            if values > _MAX_VALUES:
                break
        yield from mixer.finish()
        if broken > sound:
            raise AudioUnreadable("The sound in this file is broken.")


class _Mixer:
    """Resamples to 16 kHz mono; a stream may change its rate and channels on the way."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._kind: tuple[int, str, str] | None = None

    def mix(self, frame: "AudioFrame") -> Iterator[Floats]:
        from av import AudioResampler

        _refuse_odd_sound(frame.sample_rate, frame.layout.nb_channels)
        kind = frame.sample_rate, frame.layout.name, frame.format.name
        if kind != self._kind:
            yield from self.finish()
            self._kind = kind
            self._resampler = AudioResampler("flt", "mono", SAMPLE_RATE_HZ, _BLOCK_SAMPLES)
        frame.pts = None
        yield from self._blocks(frame)

    def finish(self) -> Iterator[Floats]:
        yield from self._blocks(None)
        self._resampler = None

    def _blocks(self, frame: "AudioFrame | None") -> Iterator[Floats]:
        for block in self._resampler.resample(frame) if self._resampler else ():
            yield block.to_ndarray().reshape(-1).astype("f4", copy=False)


@contextmanager
def _open(
    data: bytes, sniffed: Sniffed, *, cpu_seconds: float
) -> Generator[tuple["InputContainer", "AudioStream"]]:
    """Open `data` and find its first audio stream; whatever FFmpeg raises is `AudioUnreadable`."""
    memory = _Memory(plain_sound(data, sniffed), cpu_seconds)
    try:
        import av

        with av.open(
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
        ) as container:
            yield container, _first_audio_stream(container, _DECODERS[sniffed.format])
            memory.check()
    except AppError:
        raise
    except Exception as error:  # FFmpeg's binding raises a dozen kinds, ValueError included
        raise AudioUnreadable("This file cannot be read as sound.") from error


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
    _refuse_odd_sound(stream.codec_context.sample_rate, stream.codec_context.channels)
    return stream


def _refuse_to_open(*_: object) -> NoReturn:
    raise PermissionError("a sound file may not refer to another")


def _refuse_odd_sound(rate_hz: int, channels: int) -> None:
    if not (_MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ and 1 <= channels <= _MAX_CHANNELS):
        raise AudioUnreadable("The sample rate or the channels of this file are not supported.")


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


def _frames(packet: "SoundPacket") -> list["AudioFrame"]:
    """Decode `packet`; empty where it is broken."""
    from av.error import FFmpegError

    try:
        return packet.decode()
    except FFmpegError:
        return []


def _least_seconds(packet: "SoundPacket", stream: "AudioStream") -> float:
    """Return how long `packet` must play whatever its container says, 0 where that is not known."""
    codec = stream.codec_context
    if codec.name == "opus":
        return _opus_seconds(bytes(packet))
    return codec.frame_size / codec.sample_rate


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
