"""Uploads that must be refused: by class, the code of the refusal and files to try."""

import bz2
import gzip
import io
import lzma
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from app.services.ports import AudioFormat
from tests.voice.sounds import (
    EMPTY_TABLES,
    FILE_TYPE,
    OPUS_HEAD,
    RATE_HZ,
    SPEECH,
    Samples,
    box,
    ebml,
    element,
    encoded,
    film,
    flac_head,
    full_box,
    mp4,
    ogg_pages,
    samples_of,
    simple_block,
    syncsafe,
    wav,
    webm,
)

UNREADABLE = "audio-unreadable"
SILENT = "no-speech"
EMPTY = "audio-empty"
LONG = "audio-too-long"
LARGE = "audio-too-large"

MEGABYTE = 1024 * 1024
Files = dict[str, bytes]


@cache
def zeros_deflated() -> bytes:
    """Return 200 MB of zeros, compressed."""
    return zlib.compress(bytes(200 * MEGABYTE), 9)


def _noise(count: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(count)  # noqa: S311


@cache
def _speech(sound_format: AudioFormat) -> bytes:
    return encoded(samples_of(SPEECH), sound_format)


def _tone(seconds: float, make: Callable[[np.ndarray], np.ndarray]) -> Samples:
    time = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    return make(time).clip(-32768, 32767).astype(np.int16)


def _in_all_formats(samples: Samples) -> Files:
    return {sound_format.value: encoded(samples, sound_format) for sound_format in AudioFormat}


def empty() -> Files:
    return {
        "nothing": b"",
        "head of a WAV": wav(),
        "head of a FLAC that claims 2^36 samples": flac_head(total_samples=2**36 - 1),
        "WebM without a block": webm(b""),
        "MP4 without a sample": mp4(EMPTY_TABLES),
    }


def few_bytes() -> Files:
    beginnings = (b"R", b"\xff", b"\0", b"OggS", b"RIFF\0\0\0\0WAVE", b"ID3", b"\x1a\x45\xdf\xa3")
    return {repr(beginning): beginning for beginning in beginnings}


def text() -> Files:
    return {
        "words": b"This is not a recording. " * 40,
        "UTF-16": "Hello".encode("utf-16") * 40,
        "JSON": b'{"audio": "UklGRg=="}',
        "a data URL": b"data:audio/wav;base64,UklGRiSvAQBXQVZF",
        "WAV as base64": b"UklGRiSvAQBXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQCv",
    }


def markup() -> Files:
    return {
        "HTML": b"<!doctype html><title>404</title><h1>Not found</h1>" * 30,
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>' * 30,
        "an error page": b"<html><body>502 Bad Gateway</body></html>",
        "a page behind a byte order mark": b"\xef\xbb\xbf<!doctype html><p>Hello</p>" * 30,
        "XML bomb": b'<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;&b;</a>' * 30,
    }


def pictures() -> Files:
    return {
        "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100),
        "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(100),
        "GIF": b"GIF89a" + bytes(100),
        "WebP, a RIFF too": b"RIFF\x64\0\0\0WEBPVP8 " + bytes(92),
        "HEIC, an ftyp too": box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"mdat", bytes(100)),
    }


def polyglots() -> Files:
    speech = _speech(AudioFormat.MP3)
    return {
        "WAV behind a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100) + SPEECH,
        "MP3 behind a page of HTML": b"<html>" + b" " * 5000 + speech,
        "Ogg behind a line of text": b"hello\n" + _speech(AudioFormat.OGG),
        "ZIP with a WAV in it": _zip(SPEECH),
        "WAV behind a PDF": b"%PDF-1.7\n" + bytes(2000) + SPEECH,
    }


def _zip(content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", content)
    return target.getvalue()


def archives() -> Files:
    return {
        "ZIP bomb": _zip(bytes(50 * MEGABYTE)),
        "GZIP of a WAV": gzip.compress(SPEECH),
        "deflated zeros": zeros_deflated(),
        "BZIP2 of a WAV": bz2.compress(SPEECH),
        "XZ of a WAV": lzma.compress(SPEECH),
    }


def cut_frames() -> Files:
    speech = _speech(AudioFormat.MP3)
    return {
        "one MP3 frame": speech[-700:-500],
        "MP3 with every second byte": speech[::2],
        "MP3 backwards": speech[::-1],
        "half a FLAC head": _speech(AudioFormat.FLAC)[:20],
        "half an Ogg head": _speech(AudioFormat.OGG)[:40],
    }


def tags_without_sound() -> Files:
    return {
        "a tag that claims 250 MB": b"ID3\4\0\0" + syncsafe(250_000_000) + bytes(1000),
        "a tag of 20 MB and nothing": b"ID3\4\0\0" + syncsafe(20_000_000) + bytes(20_000_000),
        "two million empty tags": b"ID3\4\0\0\0\0\0\0" * 2_000_000,
        "a tag that claims to be in front of HTML": b"ID3\4\0\0" + syncsafe(0) + b"<html>" * 300,
        "a tag in front of a WAV": b"ID3\4\0\0" + syncsafe(10) + bytes(10) + SPEECH,
    }


def sync_words() -> Files:
    return {
        "MP3 syncs": b"\xff\xfb" * MEGABYTE,
        "MP3 headers": b"\xff\xfb\x90\x00" * MEGABYTE,
        "ones": b"\xff" * MEGABYTE,
        "random bytes": _noise(MEGABYTE),
        "other random bytes": _noise(MEGABYTE, seed=2),
        "AAC frames": b"\xff\xf1\x50\x80\x02\x1f\xfc" * 5000,
    }


def compression_bombs() -> Files:
    compressed = struct.pack(">I", 0x7FFFFFFF) + zeros_deflated()
    frame = b"TXXX" + syncsafe(len(zeros_deflated()) + 4) + b"\0\x09" + syncsafe(200_000_000)
    tag = frame + zeros_deflated()
    id3 = b"ID3\4\0\0" + syncsafe(len(tag)) + tag
    return {
        "compressed MP4 index": FILE_TYPE
        + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), box(b"cmvd", compressed))),
        "compressed ID3 tag": id3 + bytes(1000),
        "compressed ID3 tag twice": id3 + id3 + bytes(1000),
        "deflated zeros in an ID3 tag": b"ID3\4\0\0"
        + syncsafe(len(zeros_deflated()))
        + zeros_deflated()
        + bytes(1000),
        "compressed ID3 tag behind a tag": b"ID3\4\0\0\0\0\0\0" * 9 + id3,
    }


def compressed_blocks() -> Files:
    compression = element("5034", element("4254", b"\0"))
    encoding = element("6240", element("5031", b"\0"), element("5033", b"\0"), compression)
    bomb = simple_block(zeros_deflated()) * 20
    encodings = element("6d80", encoding)
    return {
        "WebM of deflated blocks": webm(bomb, encodings=encodings),
        "one deflated block": webm(simple_block(zeros_deflated()), encodings=encodings),
        "many deflated blocks": webm(bomb * 3, encodings=encodings),
        "deflated blocks with tags": webm(
            bomb, encodings=encodings, extras=element("1254c367", element("7373", b"x"))
        ),
        "deflated zeros in small blocks": webm(
            simple_block(zlib.compress(bytes(MEGABYTE), 9)) * 50, encodings=encodings
        ),
    }


def other_sound() -> Files:
    return {
        "AMR": b"#!AMR\n" + bytes(500),
        "AIFF": b"FORM\0\0\1\0AIFFCOMM" + bytes(500),
        "AU": b".snd\0\0\0\x18" + bytes(500),
        "MIDI": b"MThd\0\0\0\6\0\1\0\1\0\x60MTrk" + bytes(500),
        "ASF": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(500),
        "CAF": b"caff\0\1\0\0desc" + bytes(500),
        "raw PCM": samples_of(SPEECH).tobytes(),
    }


def films_without_sound() -> Files:
    return {
        "MP4": film("mp4", "mpeg4"),
        "WebM": film("webm", "libvpx"),
        "Matroska": film("matroska", "mpeg4"),
        "MP4 of another film": film("mp4", "mpeg4") + bytes(100),
        "Ogg Theora": ogg_pages(b"\x80theora\3\2\1" + bytes(40), is_first=True),
    }


def broken_mp4() -> Files:
    speech = _speech(AudioFormat.MP4)
    return {
        "cut before its index": speech[: len(speech) // 2],
        "type only": FILE_TYPE,
        "index without an end": FILE_TYPE + struct.pack(">I4sQ", 1, b"moov", 2**62) + bytes(100),
        "free space of 4 GB": FILE_TYPE + struct.pack(">I4s", 0xFFFFFFFF, b"free"),
        "zeros": FILE_TYPE + bytes(MEGABYTE),
    }


def odd_channels() -> Files:
    sound = bytes(32_000)
    return {
        f"{channels} channels": wav(sound, channels=channels, block_bytes=channels * 2)
        for channels in (0, 9, 12, 64, 65535)
    }


def odd_rates() -> Files:
    sound = bytes(32_000)
    rates = (0, 1, 3999, 768_000, 0xFFFFFFFF)
    return {f"{rate} Hz": wav(sound, rate_hz=rate) for rate in rates} | {
        "FLAC of 0 Hz": flac_head(rate_hz=0) + bytes(1000)
    }


def odd_codecs() -> Files:
    sound = bytes(32_000)
    return {
        "WAV of codec 0": wav(sound, tag=0),
        "WAV of no bits": wav(sound, bits=0, block_bytes=0),
        "WAV of MP3": wav(sound, tag=0x55),
        "WAV of AC-3": wav(sound, tag=0x2000),
        "WebM of TrueHD": webm(simple_block(bytes(100)), codec=b"A_TRUEHD", private=b""),
        "EBML of another type": ebml(b"fish") + bytes(1000),
        "EBML without a type": element("1a45dfa3", element("4286", b"\1")) + bytes(1000),
        "Ogg of Kate": ogg_pages(b"\x80kate\0\0\0" + bytes(60), is_first=True),
    }


def index_bombs() -> Files:
    count = 100_000_000
    tables = b"".join(
        [
            full_box(b"stts", struct.pack(">III", 1, count, 1024)),
            full_box(b"stsc", struct.pack(">IIII", 1, 1, count, 1)),
            full_box(b"stco", struct.pack(">II", 1, 500)),
        ]
    )
    defaults = box(b"mvex", full_box(b"trex", struct.pack(">IIIII", 1, 1, 1024, 1, 0)))
    run = full_box(b"trun", struct.pack(">I", 80_000_000))
    fragment = box(b"traf", full_box(b"tfhd", struct.pack(">I", 1)), run)
    nested = b""
    for _ in range(3000):
        nested = box(b"moov", nested)
    return {
        "sample sizes": mp4(tables + full_box(b"stsz", struct.pack(">II", 1, count))),
        "a run of a fragment": mp4(EMPTY_TABLES, in_movie=defaults, after=box(b"moof", fragment)),
        "a table without an end": mp4(full_box(b"stts", struct.pack(">I", 0x7FFFFFFF))),
        "an edit list": mp4(
            EMPTY_TABLES,
            in_movie=box(b"trak", box(b"edts", full_box(b"elst", struct.pack(">I", 0xFFFFFFFF)))),
        ),
        "3,000 boxes in each other": FILE_TYPE + nested,
        "60,000 boxes": FILE_TYPE + box(b"free") * 60_000,
    }


def tag_bombs() -> Files:
    tags = (element("7373", element("67c8", element("45a3", b"%d" % i))) for i in range(100_000))
    files = element("61a7", element("466e", b"a.txt"))
    chapters = (element("b6", element("73c4", b"%d" % i)) for i in range(100_000))
    comments = [struct.pack("<I", 8) + b"%06d=x" % i for i in range(300_000)]
    head = b"OpusTags\1\0\0\0v" + struct.pack("<I", len(comments))
    return {
        "WebM tags": webm(b"", extras=element("1254c367", *tags)),
        "WebM chapters": webm(b"", extras=element("1043a770", element("45b9", *chapters))),
        "Ogg comments without an end": ogg_pages(OPUS_HEAD, is_first=True)
        + ogg_pages(head + b"".join(comments[:150_000])),
        "WebM attachments": webm(b"", extras=element("1941a469", *(files for _ in range(20_000)))),
        "Ogg comments": ogg_pages(OPUS_HEAD, is_first=True) + ogg_pages(head + b"".join(comments)),
    }


def junk_behind_a_head() -> Files:
    noise = _noise(2 * MEGABYTE)
    return {
        "MP3": _speech(AudioFormat.MP3)[:1200] + noise,
        "MP4": FILE_TYPE + noise,
        "EBML": ebml() + noise,
        "Ogg": _speech(AudioFormat.OGG)[:200] + noise,
        "Matroska": ebml(b"matroska") + noise,
    }


def silence() -> Files:
    return _in_all_formats(np.zeros(3 * RATE_HZ, np.int16))


def noise() -> Files:
    generator = np.random.default_rng(1)
    white = generator.normal(0, 3000, 4 * RATE_HZ)
    spectrum = np.fft.rfft(white)
    pink = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)))
    as_samples = {
        "white": white,
        "faint": white / 100,
        "loud": white * 4,
        "pink": pink / pink.std() * 3000,
    }
    return {
        name: wav(sound.clip(-32768, 32767).astype("<i2").tobytes())
        for name, sound in as_samples.items()
    } | {
        "Opus": encoded(white.astype(np.int16), AudioFormat.OGG),
        "random bytes as WAV": wav(_noise(60_000)),
    }


def tones() -> Files:
    def sine(hz: float) -> Callable[[np.ndarray], np.ndarray]:
        return lambda time: 9000 * np.sin(2 * np.pi * hz * time)

    sounds = {f"{hz} Hz": _tone(4, sine(hz)) for hz in (50, 220, 440, 1000, 3000)}
    sounds["mains hum"] = _tone(
        4, lambda time: sum((sine(50 * k)(time) / k for k in range(1, 12)), np.zeros(len(time)))
    )
    sounds["clicks"] = _tone(4, lambda time: np.where(time % 0.5 < 0.001, 20_000, 0))
    sounds["telephone keys"] = _tone(
        4,
        lambda time: (sine(697)(time) + sine(1209)(time)) / 2 * (time % 0.4 < 0.2),
    )
    return {name: wav(samples.tobytes()) for name, samples in sounds.items()}


def lying_sizes() -> Files:
    sound = bytes(32_000)
    return {
        "data of 4 GB": wav(sound, data_size=0xFFFFFFFF, riff_size=0xFFFFFFFF),
        "data of 2 GB": wav(sound, data_size=0x7FFFFFFF, riff_size=3),
        "no block size": wav(sound, block_bytes=0),
        "data of no bytes": wav(sound, data_size=0, riff_size=0),
        "data of 3 GB": wav(sound, data_size=0xC0000000),
    }


def too_long() -> Files:
    minutes = np.zeros(11 * 60 * RATE_HZ, np.int16)
    opus_60_ms = b"\x1b\x81\x00"  # SILK, 60 ms, one frame of its shortest kind
    return {
        "FLAC": encoded(minutes, AudioFormat.FLAC),
        "WAV": wav(bytes(11 * 60 * 8000), bits=8, rate_hz=8000),
        "FLAC of an hour": encoded(np.zeros(61 * 60 * RATE_HZ, np.int16), AudioFormat.FLAC),
        "WebM of a day": webm(simple_block(opus_60_ms) * 100_000),
        "WebM whose clock stands still": webm(simple_block(opus_60_ms) * 11_000),
    }


def too_large() -> Files:
    return {
        "zeros": bytes(25 * MEGABYTE + 1),
        "a WAV": wav(bytes(25 * MEGABYTE)),
        "text": b"a" * 26 * MEGABYTE,
        "an MP3": _speech(AudioFormat.MP3) * (26 * MEGABYTE // len(_speech(AudioFormat.MP3)) + 1),
        "ones": b"\xff" * (25 * MEGABYTE + 1),
    }


CLASSES: dict[Callable[[], Files], str] = {
    empty: EMPTY,
    few_bytes: UNREADABLE,
    text: UNREADABLE,
    markup: UNREADABLE,
    pictures: UNREADABLE,
    polyglots: UNREADABLE,
    archives: UNREADABLE,
    cut_frames: UNREADABLE,
    tags_without_sound: UNREADABLE,
    sync_words: UNREADABLE,
    compression_bombs: UNREADABLE,
    compressed_blocks: EMPTY,
    other_sound: UNREADABLE,
    films_without_sound: UNREADABLE,
    broken_mp4: UNREADABLE,
    odd_channels: UNREADABLE,
    odd_rates: UNREADABLE,
    odd_codecs: UNREADABLE,
    index_bombs: UNREADABLE,
    tag_bombs: UNREADABLE,
    junk_behind_a_head: UNREADABLE,
    silence: SILENT,
    noise: SILENT,
    tones: SILENT,
    lying_sizes: SILENT,
    too_long: LONG,
    too_large: LARGE,
}


def all_files() -> Iterator[tuple[str, bytes]]:
    """Yield every file with its name."""
    for make in CLASSES:
        for name, data in make().items():
            yield f"{make.__name__}: {name}", data
