"""A speech provider that sends MP3 or Ogg in place of samples: decoded while it comes."""

from collections.abc import AsyncIterator, Iterator

import anyio
import numpy as np
import pytest

from app.services.openai_service import OpenAISpeaker, ProviderClient, SpeechDecoder
from app.services.openai_service.compressed_speech import Mp3Packets, OggPackets
from app.services.ports import AudioFormat, UpstreamIncomplete
from app.services.sandbox.sandbox import Sandbox
from tests.support.provider import Provider
from tests.support.provider_faults import Reply
from tests.voice.sounds import SPEECH, Samples, encoded, samples_of

pytestmark = pytest.mark.anyio

TEXT = "Good morning! " * 3
SPOKEN = samples_of(SPEECH)
ID3 = b"ID3\x04\0\0\0\0\x4e\x10" + bytes(10_000)
SENT = {
    "mp3": encoded(SPOKEN, AudioFormat.MP3),
    "mp3 with a cover": ID3 + encoded(SPOKEN, AudioFormat.MP3, options={"id3v2_version": "0"}),
    "mp3 of 44.1 kHz": encoded(SPOKEN, AudioFormat.MP3, rate_hz=44_100),
    "mp3 that a recorder wrote": encoded(SPOKEN, AudioFormat.MP3, is_live=True),
    "mp3 and a tag behind it": encoded(SPOKEN, AudioFormat.MP3) + b"TAG" + bytes(125),
    "ogg": encoded(SPOKEN, AudioFormat.OGG, rate_hz=48_000),
    "ogg in two streams": encoded(SPOKEN[:20_000], AudioFormat.OGG, rate_hz=48_000)
    + encoded(SPOKEN[20_000:], AudioFormat.OGG, rate_hz=48_000),
}


@pytest.fixture(scope="module")
def running_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def provider(running_provider: Provider) -> Provider:
    running_provider.reset()
    return running_provider


@pytest.fixture(scope="module", name="anyio_backend")
def one_event_loop() -> str:
    """As the process of the module's sandbox belongs to its event loop."""
    return "asyncio"


@pytest.fixture(scope="module")
async def sandbox(anyio_backend: str) -> AsyncIterator[Sandbox]:
    assert anyio_backend == "asyncio"
    async with Sandbox([SpeechDecoder.WARM_UP]) as sandbox:
        yield sandbox


@pytest.fixture
async def speaker(provider: Provider, sandbox: Sandbox) -> AsyncIterator[OpenAISpeaker]:
    async with ProviderClient(provider.base_url, "key") as client:
        yield OpenAISpeaker(client, "tts-1", SpeechDecoder(sandbox))


async def sound_of(speaker: OpenAISpeaker, text: str = TEXT) -> Samples:
    with anyio.fail_after(60):
        pcm = b"".join([piece async for piece in speaker.speak(text, voice="alloy")])
    return np.frombuffer(pcm, "<i2")


def likeness(heard: Samples) -> float:
    """Return how much of the speech is in what was heard, from 0 to 1, wherever it begins."""
    at_24_khz = np.interp(np.arange(0, len(SPOKEN), 2 / 3), np.arange(len(SPOKEN)), SPOKEN)
    size = 1 << (len(heard) + len(at_24_khz)).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(at_24_khz, size))
    longest = np.linalg.norm(heard.astype(float)) * np.linalg.norm(at_24_khz)
    return float(np.fft.irfft(spectrum).max() / longest)


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("piece_bytes", [700, 100_000])
@pytest.mark.parametrize("kind", SENT)
async def test_compressed_speech_is_heard_whole(
    kind: str, piece_bytes: int, provider: Provider, speaker: OpenAISpeaker
) -> None:
    provider.raw["speech"] = Reply("audio/mpeg", pieces_of(SENT[kind], piece_bytes))

    heard = await sound_of(speaker)

    assert len(heard) / 24_000 == pytest.approx(len(SPOKEN) / 16_000, abs=0.2)
    # A second stream, and what follows a gap, begin some milliseconds off.
    assert likeness(heard) > (0.5 if "two" in kind else 0.95)


@pytest.mark.parametrize("kind", ["mp3", "ogg"])
async def test_pieces_have_no_seams(
    kind: str, provider: Provider, sandbox: Sandbox, speaker: OpenAISpeaker
) -> None:
    """A job that decodes everything at once, compared with jobs of growing length."""
    reader = Mp3Packets() if kind == "mp3" else OggPackets()
    packets = reader.feed(SENT[kind])
    fields = {
        "codec": reader.codec,
        "head_bytes": len(reader.head),
        "lengths": [len(packet) for packet in packets],
        "context": 0,
    }
    at_once = await sandbox.run(
        "app.services.audio.packets:decode_packets", fields, reader.head + b"".join(packets),
        ("test", "test"),
    )  # fmt: skip
    provider.raw["speech"] = Reply("audio/ogg", [SENT[kind]])

    heard = (await sound_of(speaker)).astype(int)

    whole = np.frombuffer(at_once.payload, "<i2")
    rate_hz = at_once.fields["rate_hz"]
    places = np.arange(len(heard)) * rate_hz / 24_000
    expected = np.asarray(np.interp(places, np.arange(len(whole)), whole), np.float64)
    loud = np.abs(whole.astype(int)).max()
    window = np.convolve(np.abs(heard - expected), np.ones(240) / 240, "same")
    assert window.max() < 0.05 * loud  # a lost or doubled frame differs by more


async def test_first_sound_comes_before_the_last_byte(
    provider: Provider, speaker: OpenAISpeaker
) -> None:
    data = SENT["mp3"]
    provider.raw["speech"] = Reply("audio/mpeg", [data[:8000]], after="stall")

    with anyio.fail_after(60):
        speech = speaker.speak(TEXT, voice="alloy")
        first = await anext(speech)
        await speech.aclose()

    assert first


@pytest.mark.parametrize(
    "data",
    [
        ID3 + bytes(100_000),
        b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + bytes(5000),
        b"OggS" + bytes(23) + bytes(5000),
        b"OggS\0\2" + bytes(2000),
        SENT["ogg"][:40] + b"no page" + SENT["ogg"][40:],
        encoded(SPOKEN, AudioFormat.OGG, codec="flac"),
        SENT["mp3"][:400] + bytes(3 << 20),
        SENT["ogg"].replace(b"OpusHead", b"OpusHaed"),
    ],
)
async def test_what_cannot_be_decoded_is_refused_as_what_it_is(
    data: bytes, provider: Provider, speaker: OpenAISpeaker
) -> None:
    provider.raw["speech"] = Reply("audio/mpeg", [data])

    with pytest.raises(UpstreamIncomplete, match=r"TTS_MODEL|no speech"):
        await sound_of(speaker)


async def test_broken_packets_are_left_out(provider: Provider, speaker: OpenAISpeaker) -> None:
    data = bytearray(SENT["mp3"])
    data[len(data) // 2 : len(data) // 2 + 600] = bytes(600)
    provider.raw["speech"] = Reply("audio/mpeg", [bytes(data)])

    heard = await sound_of(speaker)

    assert len(heard) / 24_000 == pytest.approx(len(SPOKEN) / 16_000, abs=0.3)
    assert likeness(heard) > 0.5


async def test_compressed_speech_that_never_ends_is_refused(
    provider: Provider, speaker: OpenAISpeaker
) -> None:
    minutes = encoded(np.tile(SPOKEN, 40), AudioFormat.MP3)
    provider.raw["speech"] = Reply("audio/mpeg", [minutes])

    with pytest.raises(UpstreamIncomplete, match="far longer"):
        await sound_of(speaker, "Hi")
