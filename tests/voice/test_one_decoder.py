"""What is accepted is transcribed: damaged and oversized recordings, as one kind of WAV."""

import struct
from base64 import b64encode
from collections.abc import Callable

import numpy as np
import pytest

from app.services.audio.job import read_recording
from app.services.audio.samples import HEADER_BYTES, is_standard_wav
from app.services.audio.silero import Floats
from app.services.local_service.transcription import read_samples
from app.services.ports import AudioFormat, Recording
from tests.support.application import AUDIO
from tests.voice.sounds import (
    OPUS_HEAD,
    RATE_HZ,
    SPEECH,
    Samples,
    encoded,
    ogg_pages,
    samples_of,
    wav,
)
from tests.voice.upload_checks import answer, check_upload, one_event_loop, uploads

pytestmark = pytest.mark.anyio
__all__ = ["one_event_loop", "uploads"]

PCM = samples_of(SPEECH)
MIKE = samples_of((AUDIO / "mike_08.wav").read_bytes())


def likeness(heard: Floats, original: Floats) -> float:
    """Return how alike two sounds are, from 0 to 1, wherever the one is in the other."""
    size = len(heard) + len(original)
    product = np.fft.irfft(np.fft.rfft(original, size) * np.conj(np.fft.rfft(heard, size)), size)
    lag = int(np.abs(product).argmax())
    place = np.zeros(size + len(heard), np.float32)
    place[len(heard) :][: len(original)] = original
    lag = lag - size if lag >= len(original) else lag
    segment = place[lag + len(heard) :][: len(heard)]
    return float(np.abs(heard @ segment) / (np.linalg.norm(heard) * np.linalg.norm(segment)))


def floats(wav_file: bytes) -> Floats:
    return full_scale(np.frombuffer(wav_file[HEADER_BYTES:], "<i2"))


def full_scale(samples: Samples) -> Floats:
    return samples.astype(np.float32) / np.float32(32768)


async def heard(data: bytes) -> Floats:
    """Return what the upload check makes of a file, as the embedded engine reads it."""
    recording = await check_upload(data)
    assert recording.format is AudioFormat.WAV
    assert is_standard_wav(recording.data)
    samples = read_samples(recording.data)
    assert len(samples) == round(recording.duration_seconds * RATE_HZ)
    assert np.array_equal(np.asarray(samples), floats(recording.data))
    return floats(recording.data)


def hole(data: bytes, share: float, size: int, filling: bytes = b"\0") -> bytes:
    """Overwrite `size` bytes at a share of a file."""
    start = int(len(data) * share)
    return data[:start] + filling * size + data[start + size :]


def cut_out(data: bytes, share: float, size: int) -> bytes:
    start = int(len(data) * share)
    return data[:start] + data[start + size :]


DAMAGED: dict[str, Callable[[], bytes]] = {
    "MP3 with 40 zero bytes": lambda: hole(encoded(PCM, AudioFormat.MP3), 0.5, 40),
    "MP3 with 2,000 zero bytes": lambda: hole(encoded(PCM, AudioFormat.MP3), 0.4, 2000),
    "MP3 with ones": lambda: hole(encoded(PCM, AudioFormat.MP3), 0.6, 100, b"\xff"),
    "MP3 without 333 bytes": lambda: cut_out(encoded(PCM, AudioFormat.MP3), 0.5, 333),
    "FLAC without its end": lambda: encoded(PCM, AudioFormat.FLAC)[:-3000],
    "FLAC cut in its last frame": lambda: encoded(PCM, AudioFormat.FLAC)[:-7],
    "FLAC with zeros": lambda: hole(encoded(PCM, AudioFormat.FLAC), 0.5, 200),
    "live FLAC without its end": lambda: encoded(PCM, AudioFormat.FLAC, is_live=True)[:-2000],
    "Ogg with zeros": lambda: hole(encoded(PCM, AudioFormat.OGG), 0.9, 60),
    "Ogg without its end": lambda: encoded(PCM, AudioFormat.OGG)[:-700],
    "WebM with zeros": lambda: hole(encoded(PCM, AudioFormat.WEBM), 0.6, 25),
    "WebM without its end": lambda: encoded(PCM, AudioFormat.WEBM, is_live=True)[:-900],
    "M4A with zeros in its sound": lambda: hole(encoded(PCM, AudioFormat.MP4), 0.4, 40),
    "WAV with half a sample more": lambda: SPEECH + b"\x01",
    "24-bit WAV cut in a sample": lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_s24le")[:-4],
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_a_damaged_recording_is_heard_as_far_as_it_can_be(name: str) -> None:
    sound = await heard(DAMAGED[name]())

    original = full_scale(PCM)
    assert len(sound) > 0.6 * len(PCM)
    # What is lost may shift the rest, and is all that may differ.
    parts = [part for part in np.array_split(sound, 8) if np.abs(part).max() > 0.05]
    alike = [part for part in parts if likeness(part, original) > 0.9]
    assert len(parts) >= 5
    assert len(alike) >= len(parts) - 2


@pytest.mark.parametrize("voice", [PCM, MIKE], ids=["anna", "mike"])
@pytest.mark.parametrize("sound_format", AudioFormat)
async def test_every_format_comes_out_as_the_same_sound(
    voice: Samples, sound_format: AudioFormat
) -> None:
    sound = await heard(encoded(voice, sound_format))

    assert likeness(sound, full_scale(voice)) > 0.95


@pytest.mark.parametrize("sound_format", [AudioFormat.WAV, AudioFormat.FLAC])
async def test_sound_of_16_khz_is_kept_to_the_last_bit(sound_format: AudioFormat) -> None:
    recording = await check_upload(encoded(PCM, sound_format))

    assert recording.data == wav(PCM.tobytes())


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 22_050, 24_000, 44_100, 48_000, 96_000])
async def test_sound_of_another_rate_is_the_same_sound(rate_hz: int) -> None:
    sound = await heard(encoded(PCM, AudioFormat.WAV, rate_hz=rate_hz))

    assert len(sound) == pytest.approx(len(PCM), abs=40)
    assert likeness(sound, full_scale(PCM)) > 0.9


def picture_comment(size: int) -> bytes:
    """Return a comment with a cover as players write it (RFC 9639, section 8.8, as base64)."""
    image = b"\x89PNG\r\n\x1a\n" + bytes(size)
    mime = b"image/png"
    block = struct.pack(">II", 3, len(mime)) + mime + struct.pack(">I", 0)
    block += struct.pack(">IIIII", 600, 600, 24, 0, len(image)) + image
    return b"METADATA_BLOCK_PICTURE=" + b64encode(block)


def comments(*texts: bytes) -> bytes:
    head = struct.pack("<I", 4) + b"tool" + struct.pack("<I", len(texts))
    return head + b"".join(struct.pack("<I", len(text)) + text for text in texts)


def with_comments(ogg: bytes, packet: bytes) -> bytes:
    """Replace the second page of an Ogg Opus file by the pages of `packet`."""
    second = ogg.index(b"OggS", 4)
    third = ogg.index(b"OggS", second + 4)
    serial = struct.unpack_from("<I", ogg, 14)[0]
    return ogg[:second] + checked(ogg_pages(packet, serial=serial)) + ogg[third:]


def checked(pages: bytes) -> bytes:
    """Return pages with their checksums (RFC 3533, section 6)."""
    done = bytearray()
    starts = [0]
    while (following := pages.find(b"OggS", starts[-1] + 4)) >= 0:
        starts.append(following)
    for start, end in zip(starts, [*starts[1:], len(pages)], strict=True):
        page = bytearray(pages[start:end])
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", ogg_crc(bytes(page)))
        done += page
    return bytes(done)


def ogg_crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


@pytest.mark.parametrize("size", [1000, 70_000, 100_000, 400_000])
async def test_a_cover_picture_in_ogg_opus_does_no_harm(size: int) -> None:
    plain = encoded(PCM, AudioFormat.OGG)
    packet = b"OpusTags" + comments(b"TITLE=Hello", picture_comment(size))

    sound = await heard(with_comments(plain, packet))

    assert np.array_equal(sound, await heard(plain))


@pytest.mark.parametrize("entries", [2000, 40_000])
async def test_a_head_with_more_comments_than_anybody_writes_is_refused(entries: int) -> None:
    packet = b"OpusTags" + comments(*(b"K%06d=%b" % (i, b"x" * 40) for i in range(entries)))

    assert await answer(with_comments(encoded(PCM, AudioFormat.OGG), packet)) == "audio-unreadable"


async def test_a_large_packet_of_sound_in_ogg_is_refused() -> None:
    pages = ogg_pages(OPUS_HEAD, is_first=True) + ogg_pages(b"OpusTags" + comments())
    pages += ogg_pages(bytes([0xFC]) * 200_000)

    assert await answer(pages) == "audio-unreadable"


@pytest.mark.parametrize(("rate_hz", "channels"), [(192_000, 8), (96_000, 6), (44_100, 2)])
async def test_studio_recordings_are_kept_as_they_are_heard(rate_hz: int, channels: int) -> None:
    loud = samples_of(encoded_mono(rate_hz))
    data = wav(np.repeat(loud, channels).tobytes(), rate_hz=rate_hz, channels=channels)

    recording = await check_upload(data)

    assert len(recording.data) == pytest.approx(32_000 * recording.duration_seconds, abs=100)
    assert recording.duration_seconds == pytest.approx(len(PCM) / RATE_HZ, abs=0.05)


def encoded_mono(rate_hz: int) -> bytes:
    """Return speech of `rate_hz` that says it has 16 kHz, to be read as plain samples."""
    data = encoded(PCM, AudioFormat.WAV, rate_hz=rate_hz)
    return wav(data[data.index(b"data") + 8 :])


async def test_more_samples_than_ten_minutes_of_music_have_are_refused() -> None:
    silence = np.zeros(600 * RATE_HZ, np.int16)
    data = encoded(silence, AudioFormat.FLAC, rate_hz=192_000)

    fields, _ = read_recording({}, data)

    assert fields["code"] in {"no-speech", "audio-unreadable"}


def test_the_embedded_engine_reads_no_other_kind_of_sound() -> None:
    from app.services.local_service.tasks import Refused

    for data in (b"", SPEECH[:30], encoded(PCM, AudioFormat.MP3), wav(bytes(100), rate_hz=8000)):
        with pytest.raises(Refused):
            read_samples(Recording(data, AudioFormat.WAV, 1).data)
