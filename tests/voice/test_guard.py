"""What the guard takes, what it refuses, and what it costs."""

import random
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import numpy as np
import pytest

from app.services.audio.job import MAX_SECONDS, read_recording
from app.services.audio.samples import is_standard_wav
from app.services.ports import AudioFormat
from tests.support.application import AUDIO
from tests.voice.bad_audio import (
    CLASSES,
    Files,
)
from tests.voice.sounds import (
    RATE_HZ,
    SPEECH,
    box,
    encoded,
    film,
    full_box,
    samples_of,
    seconds_of,
    syncsafe,
    wav,
)
from tests.voice.upload_checks import answer, check_upload, one_event_loop, uploads

pytestmark = pytest.mark.anyio
__all__ = ["one_event_loop", "uploads"]

PCM = samples_of(SPEECH)
SECONDS = seconds_of(SPEECH)


@pytest.mark.parametrize("path", sorted(AUDIO.glob("*.wav")), ids=lambda path: path.stem)
async def test_every_sample_of_speech_is_accepted(path: Path) -> None:
    data = path.read_bytes()  # noqa: ASYNC240  # a small file

    recording = await check_upload(data)

    assert is_standard_wav(recording.data)
    assert recording.format is AudioFormat.WAV
    assert recording.duration_seconds == pytest.approx(seconds_of(data), abs=0.01)


async def test_plain_samples_that_begin_with_speech_are_accepted_without_a_wait() -> None:
    with pytest.raises(StopIteration) as end:
        check_upload(SPEECH).send(None)

    recording = end.value.value
    assert recording.data is SPEECH
    assert recording.format is AudioFormat.WAV
    assert recording.duration_seconds == pytest.approx(SECONDS, abs=0.01)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (
            encoded(np.concatenate([np.zeros(2 * RATE_HZ, PCM.dtype), PCM]), AudioFormat.WAV),
            "accepted",
        ),
        (encoded(np.zeros(2 * RATE_HZ, PCM.dtype), AudioFormat.WAV), "no-speech"),
        (encoded(PCM, AudioFormat.WEBM), "accepted"),
        (wav(SPEECH[44:], channels=9), "audio-unreadable"),
    ],
    ids=["speech after silence", "silence", "encoded", "nine channels"],
)
async def test_what_takes_longer_is_left_to_the_worker(data: bytes, verdict: str) -> None:
    inspection = check_upload(data)
    inspection.send(None)  # returns, as somebody is waited for
    with suppress(RuntimeError):
        inspection.close()

    assert await answer(data) == verdict


@pytest.mark.parametrize("voice", ["anna_05", "mike_08"])
@pytest.mark.parametrize("sound_format", AudioFormat)
async def test_speech_is_accepted_in_every_format(voice: str, sound_format: AudioFormat) -> None:
    speech = (AUDIO / f"{voice}.wav").read_bytes()

    recording = await check_upload(encoded(samples_of(speech), sound_format))

    assert recording.format is AudioFormat.WAV
    assert is_standard_wav(recording.data)
    assert recording.duration_seconds == pytest.approx(seconds_of(speech), abs=0.1)


def mp3() -> bytes:
    return encoded(PCM, AudioFormat.MP3)


def rf64() -> bytes:
    sizes = struct.pack("<4sIQQQI", b"ds64", 28, len(SPEECH) + 36, len(SPEECH) - 44, len(PCM), 0)
    return b"".join(
        [b"RF64\xff\xff\xff\xffWAVE", sizes, SPEECH[12:40], b"\xff\xff\xff\xff", SPEECH[44:]]
    )


def ape_tag() -> bytes:
    items = b"".join(struct.pack("<II", 1, 0) + b"%07d\0x" % i for i in range(60_000))
    return items + b"APETAGEX" + struct.pack("<IIII", 2000, len(items) + 32, 60_000, 0) + bytes(8)


def riff_tags() -> bytes:
    tags = b"".join(b"%04d" % (i % 9999) + b"\2\0\0\0x\0" for i in range(100_000))
    return b"LIST" + struct.pack("<I", 4 + len(tags)) + b"INFO" + tags


def with_movie_tags() -> bytes:
    names = [box(b"%04d" % i, box(b"data", b"\0\0\0\1\0\0\0\0x")) for i in range(9999)]
    tags = box(b"udta", full_box(b"meta", box(b"ilst", *names)))
    return encoded(PCM, AudioFormat.MP4, options={"movflags": "empty_moov+frag_keyframe"}) + tags


def flac_with_comments() -> bytes:
    plain = encoded(PCM, AudioFormat.FLAC)
    comments = struct.pack("<II", 0, 100_000) + b"\x08\0\0\0A123456=" * 100_000
    block = b"\x04" + len(comments).to_bytes(3, "big") + comments
    return plain[:42] + block + plain[42:]


UNUSUAL: dict[str, tuple[Callable[[], bytes], float]] = {
    "8-bit WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_u8"), SECONDS),
    "24-bit WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_s24le"), SECONDS),
    "32-bit WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_s32le"), SECONDS),
    "float WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_f32le"), SECONDS),
    "A-law WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_alaw"), SECONDS),
    "mu-law WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="pcm_mulaw"), SECONDS),
    "ADPCM WAV": (lambda: encoded(PCM, AudioFormat.WAV, codec="adpcm_ms"), SECONDS),
    "telephone WAV": (lambda: encoded(PCM, AudioFormat.WAV, rate_hz=8000), SECONDS),
    "studio WAV": (lambda: encoded(PCM, AudioFormat.WAV, rate_hz=96_000), SECONDS),
    "stereo WAV": (lambda: wav(np.repeat(PCM, 2).tobytes(), channels=2), SECONDS),
    "RF64": (rf64, SECONDS),
    "streamed WAV of size 0": (lambda: wav(PCM.tobytes(), data_size=0, riff_size=0), SECONDS),
    "streamed WAV of 4 GB": (lambda: wav(PCM.tobytes(), data_size=2**32 - 1), SECONDS),
    "cut WAV": (lambda: SPEECH[:-32_000], SECONDS - 1),
    "WAV with 100,000 tags": (lambda: wav(PCM.tobytes(), before_data=riff_tags()), SECONDS),
    "MP3 with a tag of 20 MB": (
        lambda: b"ID3\4\0\0" + syncsafe(20_000_000) + bytes(20_000_000) + mp3(),
        SECONDS,
    ),
    "MP3 with an old tag": (lambda: mp3() + b"TAG" + b"x" * 125, SECONDS),
    "MP3 with 60,000 APE tags": (lambda: mp3() + ape_tag(), SECONDS),
    "MP3 that begins within a frame": (lambda: mp3()[1000:], SECONDS - 0.1),
    "MP3 at 44.1 kHz": (lambda: encoded(PCM, AudioFormat.MP3, rate_hz=44_100), SECONDS),
    "live MP4": (with_movie_tags, SECONDS),
    "ALAC": (lambda: encoded(PCM, AudioFormat.MP4, codec="alac", rate_hz=44_100), SECONDS),
    "live WebM": (lambda: encoded(PCM, AudioFormat.WEBM, is_live=True), SECONDS),
    "film with sound": (lambda: film("webm", "libvpx", PCM), SECONDS),
    "live Ogg": (lambda: encoded(PCM, AudioFormat.OGG, is_live=True), SECONDS),
    "Ogg FLAC": (lambda: encoded(PCM, AudioFormat.OGG, codec="flac"), SECONDS),
    "FLAC with 100,000 comments": (flac_with_comments, SECONDS),
    "late speech": (
        lambda: encoded(np.r_[np.zeros(20 * RATE_HZ, np.int16), PCM], AudioFormat.OGG),
        SECONDS + 20,
    ),
    "one short word": (lambda: wav(PCM[8000:14_400].tobytes()), 0.4),
}


@pytest.mark.parametrize("name", UNUSUAL)
async def test_unusual_recording_is_accepted_with_its_duration(name: str) -> None:
    make, seconds = UNUSUAL[name]

    recording = await check_upload(make())

    assert recording.duration_seconds == pytest.approx(seconds, abs=0.12)


@pytest.mark.parametrize("lost_share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize(
    "sound_format", [AudioFormat.WEBM, AudioFormat.OGG, AudioFormat.MP3, AudioFormat.FLAC]
)
async def test_recording_whose_end_was_lost_is_accepted(
    sound_format: AudioFormat, lost_share: float
) -> None:
    whole = encoded(PCM, sound_format, is_live=True)

    recording = await check_upload(whole[: int(len(whole) * (1 - lost_share))])

    # A cut page of Ogg takes a second with it, and no codec is even.
    assert recording.duration_seconds == pytest.approx(SECONDS * (1 - lost_share), abs=1.2)


@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
async def test_bad_audio_is_refused_with_its_code_within_a_second(
    make: Callable[[], Files], capfd: pytest.CaptureFixture[str]
) -> None:
    files = make()
    refusals: dict[str, str] = {}
    slow: dict[str, float] = {}

    for name, data in files.items():
        refusals[name] = await answer(data)
        begin = time.process_time()
        read_recording({}, data)
        if (spent := time.process_time() - begin) > 1:
            slow[name] = spent

    assert refusals == dict.fromkeys(files, CLASSES[make])
    assert not slow
    assert capfd.readouterr() == ("", "")


async def test_ten_minutes_and_a_little_padding_are_not_too_long() -> None:
    minutes = np.resize(PCM, MAX_SECONDS * RATE_HZ + 8000)

    accepted = await check_upload(encoded(minutes, AudioFormat.FLAC))

    assert accepted.duration_seconds == pytest.approx(MAX_SECONDS + 0.5, abs=0.1)


@pytest.mark.parametrize("sound_format", AudioFormat)
async def test_damaged_file_is_accepted_or_refused_but_never_a_bug(
    sound_format: AudioFormat,
) -> None:
    whole = encoded(PCM[: 2 * RATE_HZ], sound_format)
    chance = random.Random(sound_format.value)  # noqa: S311

    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 5, 50))):
            place = chance.randrange(min(len(damaged), chance.choice((64, 600, 10**6))))
            damaged[place] = chance.randrange(256)
        upload = bytes(damaged[chance.choice((0, 0, 0, 3)) :])
        assert await answer(upload) in {*CLASSES.values(), "accepted"}
        begin = time.process_time()
        read_recording({}, upload)
        assert time.process_time() - begin < 1


async def test_cancelled_caller_does_not_wait_for_the_thread() -> None:
    data = wav(np.random.default_rng(1).normal(0, 3000, 300 * RATE_HZ).astype("<i2").tobytes())

    begin = time.perf_counter()
    with anyio.move_on_after(0.05) as scope:
        await check_upload(data)

    assert scope.cancelled_caught
    assert time.perf_counter() - begin < 1


async def test_every_class_of_bad_audio_has_files() -> None:
    assert len(CLASSES) >= 24
    assert [make.__name__ for make in CLASSES if len(make()) < 5] == []
