"""Makes sound files of every kind, good ones and parts of bad ones."""

import io
import struct
import wave
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from app.services.ports import AudioFormat
from tests.support.application import AUDIO

Samples = NDArray[np.int16]

SPEECH = (AUDIO / "anna_01.wav").read_bytes()
RATE_HZ = 16_000

_ENCODERS = {
    AudioFormat.WAV: ("wav", "pcm_s16le"),
    AudioFormat.MP3: ("mp3", "libmp3lame"),
    AudioFormat.MP4: ("mp4", "aac"),
    AudioFormat.WEBM: ("webm", "libopus"),
    AudioFormat.OGG: ("ogg", "libopus"),
    AudioFormat.FLAC: ("flac", "flac"),
}


class LiveStream:
    """Where a recorder writes that cannot go back, so that no length is known."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def samples_of(wav: bytes) -> Samples:
    """Return the samples of a file of 16 kHz mono."""
    with wave.open(io.BytesIO(wav)) as file:
        assert file.getframerate() == RATE_HZ
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def seconds_of(wav: bytes) -> float:
    with wave.open(io.BytesIO(wav)) as file:
        return file.getnframes() / file.getframerate()


def encoded(
    samples: Samples,
    sound_format: AudioFormat,
    *,
    codec: str | None = None,
    rate_hz: int = RATE_HZ,
    is_live: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """Return `samples` (16 kHz mono) as a file; `is_live` writes it as a recorder does."""
    container_format, default_codec = _ENCODERS[sound_format]
    target: Any = LiveStream() if is_live else io.BytesIO()
    container: Any = av.open(target, "w", format=container_format, options=options or {})
    with container:
        stream: Any = container.add_stream(codec or default_codec, rate=rate_hz, layout="mono")
        resampler = av.AudioResampler(
            stream.codec_context.format, "mono", rate_hz, stream.codec_context.frame_size or 1024
        )
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", "mono")
        frame.sample_rate = RATE_HZ
        frame.pts = 0
        frame.time_base = Fraction(1, RATE_HZ)
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return bytes(target.data) if is_live else target.getvalue()


def film(container_format: str, codec: str, sound: Samples | None = None) -> bytes:
    """Return half a second of pictures, with or without sound."""
    target = io.BytesIO()
    container: Any = av.open(target, "w", format=container_format)
    with container:
        video: Any = container.add_stream(codec, rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("libopus", rate=48_000, layout="mono")
        for index in range(5):
            picture = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), index * 20, np.uint8), format="rgb24"
            )
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), "s16", "mono")
            frame.sample_rate = RATE_HZ
            resampler = av.AudioResampler(
                audio.codec_context.format, "mono", 48_000, audio.codec_context.frame_size
            )
            for block in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(audio.encode(block))
            container.mux(audio.encode(None))
    return target.getvalue()


def wav(  # a WAV header has that many fields
    sound: bytes = b"",
    *,
    tag: int = 1,
    channels: int = 1,
    rate_hz: int = RATE_HZ,
    bits: int = 16,
    block_bytes: int | None = None,
    riff_size: int | None = None,
    data_size: int | None = None,
    before_data: bytes = b"",
    magic: bytes = b"RIFF",
) -> bytes:
    """Return a WAV file whose header says what it is told to, true or not."""
    block = channels * bits // 8 if block_bytes is None else block_bytes
    head = struct.pack(
        "<HHIIHH",
        tag,
        channels & 0xFFFF,
        rate_hz,
        rate_hz * block & 0xFFFFFFFF,
        block & 0xFFFF,
        bits,
    )
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + before_data + b"data"
    body += struct.pack("<I", len(sound) if data_size is None else data_size) + sound
    return magic + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, *content: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", flags), *content)


FILE_TYPE = box(b"ftyp", b"isom\0\0\2\0isommp42")
EMPTY_TABLES = b"".join(
    full_box(kind, struct.pack(">II", 0, 0)) for kind in (b"stts", b"stsc", b"stco", b"stsz")
)


def mp4(tables: bytes, *, in_movie: bytes = b"", after: bytes = b"", source: bytes = b"") -> bytes:
    """Return an MP4 of one sound track whose sample tables are `tables`."""
    entry = box(
        b"mp4a",
        bytes(6)
        + struct.pack(">H", 1)
        + bytes(8)
        + struct.pack(">HHHHI", 1, 16, 0, 0, 16000 << 16),
    )
    reference = source or full_box(b"url ", flags=1)
    media = box(
        b"minf",
        full_box(b"smhd", bytes(4)),
        box(b"dinf", full_box(b"dref", struct.pack(">I", 1), reference)),
        box(b"stbl", full_box(b"stsd", struct.pack(">I", 1), entry), tables),
    )
    track = box(
        b"trak",
        full_box(b"tkhd", struct.pack(">IIIII", 0, 0, 1, 0, 48000) + bytes(60), flags=7),
        box(
            b"mdia",
            full_box(b"mdhd", struct.pack(">IIIIHH", 0, 0, 16000, 48000, 0x55C4, 0)),
            full_box(b"hdlr", bytes(4), b"soun", bytes(12), b"x\0"),
            media,
        ),
    )
    head = full_box(b"mvhd", struct.pack(">IIII", 0, 0, 16000, 48000) + bytes(80))
    return FILE_TYPE + box(b"moov", head, track, in_movie) + after + box(b"mdat", bytes(1000))


def element(element_id: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return bytes.fromhex(element_id) + (len(body) | 1 << 56).to_bytes(8, "big") + body


def ebml(doc_type: bytes = b"webm") -> bytes:
    return element("1a45dfa3", element("4286", b"\1"), element("4282", doc_type))


OPUS_HEAD = b"OpusHead\1\1\x38\1\x80\xbb\0\0\0\0\0"
_UNKNOWN_SIZE = b"\x01" + b"\xff" * 7


def webm(
    blocks: bytes,
    *,
    codec: bytes = b"A_OPUS",
    private: bytes = OPUS_HEAD,
    encodings: bytes = b"",
    extras: bytes = b"",
) -> bytes:
    """Return a live WebM of one sound track with `blocks` in its only cluster."""
    sound = element("e1", element("b5", struct.pack(">d", 48000.0)), element("9f", b"\1"))
    track = element(
        "ae",
        element("d7", b"\1"),
        element("73c5", b"\1"),
        element("83", b"\2"),
        element("86", codec),
        element("63a2", private),
        encodings,
        sound,
    )
    return b"".join(
        [
            ebml(),
            bytes.fromhex("18538067") + _UNKNOWN_SIZE,
            element("1549a966", element("2ad7b1", b"\x0f\x42\x40")),
            extras,
            element("1654ae6b", track),
            bytes.fromhex("1f43b675") + _UNKNOWN_SIZE,
            element("e7", b"\0"),
            blocks,
        ]
    )


def simple_block(packet: bytes, time_ms: int = 0) -> bytes:
    return element("a3", b"\x81" + struct.pack(">h", time_ms) + b"\x80" + packet)


def ogg_pages(packet: bytes, *, serial: int = 1, is_first: bool = False) -> bytes:
    """Return `packet` on as many pages as it takes, without checksums."""
    pages: list[bytes] = []
    for begin in range(0, len(packet) + 1, 65_025):
        part = packet[begin : begin + 65_025]
        lacing = bytes([255] * (len(part) // 255))
        if len(part) < 65_025:
            lacing += bytes([len(part) % 255])
        flags = (1 if pages else 0) | (2 if is_first else 0)
        head = struct.pack("<4sBBqIII", b"OggS", 0, flags, 0, serial, len(pages), 0)
        pages.append(head + bytes([len(lacing)]) + lacing + part)
    return b"".join(pages)


def flac_head(*, rate_hz: int = RATE_HZ, total_samples: int = 0, blocks: bytes = b"") -> bytes:
    """Return the head of a FLAC file; `blocks` are metadata blocks, the last one marked so."""
    packed = (rate_hz << 44 | 15 << 36 | total_samples).to_bytes(8, "big")
    info = struct.pack(">HH", 65535, 65535) + bytes(6) + packed + bytes(16)
    return b"fLaC" + (b"\0" if blocks else b"\x80") + b"\0\0\x22" + info + blocks


def syncsafe(number: int) -> bytes:
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))
