"""Speech that is no speech, and servers without Realtime sessions."""

import gzip
import logging
import math
import struct
from collections.abc import AsyncIterator, Iterator

import anyio
import numpy as np
import orjson
import pytest

from app.services.openai_service import OpenAISpeaker, ProviderClient, make_speaker
from app.services.openai_service.pcm import PcmReader
from app.services.ports import (
    ProviderError,
    ProviderRejected,
    ProviderUnauthorized,
    Speaker,
    UpstreamIncomplete,
)
from tests.support.provider import Fault, Provider
from tests.support.provider_faults import Reply

pytestmark = pytest.mark.anyio

TEXT = "Good morning!"
REALTIME = "gpt-realtime-test"


@pytest.fixture(scope="module")
def running_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    running_provider.reset()
    running_provider.speech.ms_per_character = 10
    return running_provider


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[ProviderClient]:
    async with ProviderClient(provider.base_url, "key") as client:
        yield client


async def sound_of(speaker: Speaker) -> bytes:
    with anyio.fail_after(60):
        return b"".join([piece async for piece in speaker.speak(TEXT, voice="alloy")])


def wav(rate_hz: int = 24_000, channels: int = 1, bits: int = 16, tag: int = 1) -> bytes:
    step = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * step, step, bits)
    data = bytes(4000)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", 4000) + data
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


ADTS_FRAME = bytes([0xFF, 0xF1, 0x50, 0x80, 0x19, 0x1F, 0xFC]) + bytes(193)
MP3_FRAME = b"\xff\xf3\x84\xc4" + bytes(188)
NO_SAMPLES = {
    "a sentence": b"The model is being loaded, try again later.",
    "a long text": b"The model is being loaded. " * 400,
    "a short word": b"busy",
    "cyrillic": ("Модель загружается. " * 9).encode(),
    "cyrillic that is cut in a letter": ("Модель загружается. " * 9).encode()[:41],
    "chinese": ("模型正在加载。" * 30).encode(),
    "json": orjson.dumps({"error": {"message": "busy"}}),
    "html": b"<!doctype html>\n<p>Bad gateway</p>\n",
    "base64": b"UklGRiQAAABXQVZFZm10IBAAAAABAAEA" * 40,
    "ogg": b"OggS\0\2" + bytes(2000),
    "flac": b"fLaC\0\0\0\x22" + bytes(2000),
    "webm": b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81" + bytes(2000),
    "mp4": b"\0\0\0\x20ftypM4A " + bytes(2000),
    "aiff": b"FORM\0\0\x10\0AIFFCOMM" + bytes(2000),
    "gzip": gzip.compress(bytes(5000) + b"x"),
    "aac": ADTS_FRAME * 20,
    "mp3": MP3_FRAME * 40,
    "wav of mu-law": wav(8000, bits=8, tag=7),
    "wav of ADPCM": wav(bits=4, tag=2),
    "wav of 1 Hz": wav(1),
    "wav of 1 MHz": wav(1_000_000),
    "wav of no channels": wav(channels=0),
    "wav of 9 channels": wav(channels=9),
    "wav of 12 bits": wav(channels=2, bits=12),
    "wav of floats of 16 bits": wav(bits=16, tag=3),
    "wav of 0 bits": wav(bits=0),
}


@pytest.mark.parametrize("label", ["audio/pcm", "text/plain", "audio/mpeg", ""])
@pytest.mark.parametrize("kind", NO_SAMPLES)
async def test_what_is_no_pcm_is_refused_before_any_of_it_is_played(
    kind: str, label: str, provider: Provider, client: ProviderClient
) -> None:
    provider.raw["speech"] = Reply(label, [NO_SAMPLES[kind]])
    speech = OpenAISpeaker(client, "tts-1").speak(TEXT, voice="alloy")

    with pytest.raises(UpstreamIncomplete, match="TTS_MODEL"):
        await anext(speech)


@pytest.mark.parametrize("kind", NO_SAMPLES)
def test_what_is_no_pcm_is_refused_byte_by_byte(kind: str) -> None:
    reader = PcmReader(TEXT)
    played: list[bytes] = []

    def play() -> None:
        played.extend(reader.feed(bytes([byte])) for byte in NO_SAMPLES[kind])
        played.append(reader.end())

    with pytest.raises(UpstreamIncomplete):
        play()

    assert not any(played)


@pytest.mark.parametrize(
    "label",
    [
        "audio/L16; rate=44100; channels=1",
        "audio/pcm; rate=16",
        "audio/pcm; rate=999999999999",
        "audio/pcm; channels=0",
        "audio/mpeg; rate=16000",
        'audio/L16; channels="2"',
    ],
)
async def test_other_samples_than_asked_for_are_refused_by_their_label(
    label: str, provider: Provider, client: ProviderClient
) -> None:
    provider.raw["speech"] = Reply(label, [bytes(4000)])

    with pytest.raises(UpstreamIncomplete, match="asked for"):
        await sound_of(OpenAISpeaker(client, "tts-1"))


@pytest.mark.parametrize(
    "label", ["audio/pcm;rate=24000", "audio/pcm; rate=24000; channels=1", "text/plain", ""]
)
async def test_right_samples_are_played_whatever_their_label(
    label: str, provider: Provider, client: ProviderClient
) -> None:
    samples = provider.speech.pcm(TEXT)
    provider.raw["speech"] = Reply(label, [samples[:5], samples[5:100], samples[100:]])

    assert await sound_of(OpenAISpeaker(client, "tts-1")) == samples


SECONDS, TONE_HZ = 1.5, 440


def tone(rate_hz: int, channels: int = 1, bits: int = 16, *, is_float: bool = False) -> bytes:
    """Samples of a tone on the first channel and silence on the others."""
    moments = (
        0.5 * math.sin(2 * math.pi * TONE_HZ * n / rate_hz) for n in range(int(SECONDS * rate_hz))
    )
    silence = bytes((channels - 1) * bits // 8) if bits > 8 else b"\x80" * (channels - 1)

    def encoded(value: float) -> bytes:
        if is_float:
            return struct.pack("<f" if bits == 32 else "<d", value)
        if bits == 8:
            return bytes([round(value * 127) + 128])
        return round(value * (2 ** (bits - 1) - 1)).to_bytes(bits // 8, "little", signed=True)

    return b"".join(encoded(value) + silence for value in moments)


def wav_of(
    data: bytes, rate_hz: int, channels: int, bits: int, tag: int, announced: int | None = None
) -> bytes:
    step = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * step, step, bits)
    if tag == 0xFFFE:
        form += struct.pack("<HHIH", 22, bits, 0, 1) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    chunks = b"LIST" + struct.pack("<I", 3) + b"ab\0\0"
    chunks += b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data) if announced is None else announced) + data
    return b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + chunks


def assert_is_the_tone(pcm: bytes, channels: int = 1) -> None:
    samples = np.frombuffer(pcm, "<i2").astype(float) / 32768
    expected = 0.5 / channels * np.sin(2 * np.pi * TONE_HZ * np.arange(len(samples)) / 24_000)
    assert len(samples) == pytest.approx(SECONDS * 24_000, abs=2)
    inside = slice(400, -400)  # it begins and ends suddenly
    assert np.abs(samples[inside] - expected[inside]).max() < 0.02


@pytest.mark.parametrize(
    ("rate_hz", "channels", "bits", "tag"),
    [
        (22_050, 1, 16, 1),
        (48_000, 1, 16, 1),
        (24_000, 2, 16, 1),
        (44_100, 2, 16, 1),
        (16_000, 1, 16, 1),
        (8_000, 1, 16, 1),
        (11_025, 1, 8, 1),
        (32_000, 1, 24, 1),
        (24_000, 1, 32, 1),
        (48_000, 6, 32, 3),
        (24_000, 1, 64, 3),
        (96_000, 2, 24, 0xFFFE),
    ],
)
async def test_wav_of_other_samples_is_converted(
    rate_hz: int, channels: int, bits: int, tag: int, provider: Provider, client: ProviderClient
) -> None:
    samples = tone(rate_hz, channels, bits, is_float=tag == 3)
    file = wav_of(samples, rate_hz, channels, bits, tag) + b"LIST" + bytes(range(200)) * 9
    pieces = [file[:3], file[3:20], file[20:51], file[51:1001], file[1001:70_000], file[70_000:]]
    provider.raw["speech"] = Reply("audio/wav", list(filter(None, pieces)))

    heard = await sound_of(OpenAISpeaker(client, "tts-1"))

    assert_is_the_tone(heard, channels)
    reader = PcmReader("x" * 100)
    at_once = [reader.feed(file), reader.end()]
    assert np.abs(
        np.frombuffer(heard, "<i2").astype(int) - np.frombuffer(b"".join(at_once), "<i2")
    ).max() <= 1  # fmt: skip


@pytest.mark.parametrize("announced", [0, 0xFFFFFFFF, 0x7FFFFFFF])
async def test_streamed_wav_without_a_length_is_converted(
    announced: int, provider: Provider, client: ProviderClient
) -> None:
    file = wav_of(tone(22_050), 22_050, 1, 16, 1, announced)
    provider.raw["speech"] = Reply("audio/wav", [file[:5000], file[5000:]])

    assert_is_the_tone(await sound_of(OpenAISpeaker(client, "tts-1")))


@pytest.mark.parametrize(
    ("label", "rate_hz", "channels"),
    [
        ("audio/pcm;rate=22050", 22_050, 1),
        ("audio/pcm; rate=48000; channels=2", 48_000, 2),
        ('audio/x-pcm; channels="2"', 24_000, 2),
    ],
)
async def test_bare_samples_of_another_kind_are_converted_by_their_label(
    label: str, rate_hz: int, channels: int, provider: Provider, client: ProviderClient
) -> None:
    samples = tone(rate_hz, channels)
    provider.raw["speech"] = Reply(label, [samples[:7777], samples[7777:]])

    assert_is_the_tone(await sound_of(OpenAISpeaker(client, "tts-1")), channels)


async def test_converted_speech_that_never_ends_is_refused(
    provider: Provider, client: ProviderClient
) -> None:
    file = wav_of(bytes(2 * 8_000 * 60), 8_000, 1, 16, 1)
    provider.raw["speech"] = Reply("audio/wav", [file])

    with pytest.raises(UpstreamIncomplete, match="far longer"):
        await sound_of(OpenAISpeaker(client, "tts-1"))


async def test_floats_that_are_no_numbers_are_silence(
    provider: Provider, client: ProviderClient
) -> None:
    values = struct.pack("<4f", math.nan, math.inf, -math.inf, 1e30) * 3000
    provider.raw["speech"] = Reply("audio/wav", [wav_of(values, 24_000, 1, 32, 3)])

    heard = np.frombuffer(await sound_of(OpenAISpeaker(client, "tts-1")), "<i2")

    assert set(heard[::4]) == {0}


@pytest.mark.parametrize("status", [200, 400, 403, 404, 405, 426, 501])
async def test_server_without_realtime_speaks_through_the_other_endpoint_with_one_warning(
    status: int, provider: Provider, client: ProviderClient, caplog: pytest.LogCaptureFixture
) -> None:
    provider.raw["realtime"] = Reply("text/html", [b"<p>No such page"], status=status)
    speaker = make_speaker(client, REALTIME)

    for _ in range(3):
        assert await sound_of(speaker) == provider.speech.pcm(TEXT)

    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "TTS_MODEL" in warning.getMessage()
    assert len(provider.to("realtime")) == 1
    assert [request.body["model"] for request in provider.to("speech")] == ["tts-1"] * 3


@pytest.mark.parametrize(
    ("fault", "failure"),
    [(Fault.STATUS_401, ProviderUnauthorized), (Fault.STATUS_500, ProviderError)],
)
async def test_server_that_fails_is_not_taken_for_one_without_realtime(
    fault: Fault, failure: type[ProviderError], provider: Provider, client: ProviderClient
) -> None:
    provider.fail(fault, "realtime")
    speaker = make_speaker(client, REALTIME)

    with pytest.raises(failure):
        await sound_of(speaker)

    assert await sound_of(speaker) == provider.speech.pcm(TEXT)
    assert not provider.to("speech")


async def test_server_with_neither_endpoint_says_what_to_check(
    provider: Provider, client: ProviderClient
) -> None:
    for endpoint in ("realtime", "speech"):
        provider.fail(Fault.STATUS_404, endpoint, times=None)

    with pytest.raises(ProviderRejected, match="TTS_MODEL"):
        await sound_of(make_speaker(client, REALTIME))


async def test_frames_of_a_session_that_say_nothing_are_skipped(
    provider: Provider, client: ProviderClient
) -> None:
    provider.fail(Fault.BARE_DATA, "realtime", at=0)

    assert await sound_of(make_speaker(client, REALTIME)) == provider.speech.pcm(TEXT)
