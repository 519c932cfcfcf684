"""A reply is one MP3 stream without holes."""

import io
import subprocess

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.voice.mp3 import Mp3Encoder
from tests.support.tools import find_tool

RATES_HZ = (16_000, 22_050, 24_000, 44_100, 48_000)


def tone(rate_hz: int, seconds: float) -> bytes:
    time = np.arange(int(rate_hz * seconds)) / rate_hz
    return (8000 * np.sin(2 * np.pi * 440 * time)).astype("<i2").tobytes()


def mp3_of(pcm: bytes, rate_hz: int, chunk_bytes: int) -> bytes:
    encoder = Mp3Encoder(rate_hz)
    chunks = [pcm[at : at + chunk_bytes] for at in range(0, len(pcm), chunk_bytes)]
    return b"".join(map(encoder.encode, chunks)) + encoder.finish()


def decoded(mp3: bytes) -> tuple[int, np.ndarray]:
    """Return sample rate and samples; raises what a decoder finds wrong."""
    with av.open(io.BytesIO(mp3), "r", format="mp3") as container:
        frames = list(container.decode(audio=0))
    return frames[0].sample_rate, np.concatenate([frame.to_ndarray()[0] for frame in frames])


def test_encoder_that_was_started_before_makes_the_same_stream() -> None:
    pcm = tone(24_000, 1)
    encoder = Mp3Encoder(24_000)

    encoder.start()

    assert encoder.encode(pcm) + encoder.finish() == mp3_of(pcm, 24_000, len(pcm))


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_stream_plays_as_long_as_the_sound_and_one_encoder_delay(rate_hz: int) -> None:
    pcm = tone(rate_hz, 3)

    rate, samples = decoded(mp3_of(pcm, rate_hz, rate_hz // 25 * 2))

    assert rate == rate_hz
    samples_per_frame = 1152 if rate_hz >= 32_000 else 576
    delay = 576 + 529
    assert 0 <= len(samples) - len(pcm) // 2 <= delay + 2 * samples_per_frame


def test_ten_sentences_have_no_seam_between_them() -> None:
    rate_hz = 24_000
    whole = tone(rate_hz, 10)

    _, samples = decoded(mp3_of(whole, rate_hz, rate_hz * 2))

    middle = samples[rate_hz // 2 : rate_hz * 19 // 2].reshape(-1, rate_hz // 50)
    loudness = np.sqrt((middle**2).mean(1))
    assert loudness.min() > 0.95 * loudness.max()


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_stream_begins_with_sound_and_has_no_header_that_tells_a_length(rate_hz: int) -> None:
    mp3 = mp3_of(tone(rate_hz, 1), rate_hz, 4096)

    assert mp3[0] == 0xFF
    assert mp3[1] & 0xE6 == 0xE2  # a frame of layer III
    assert not any(mark in mp3 for mark in (b"Xing", b"Info", b"VBRI", b"ID3", b"TAG"))


def test_first_frames_come_before_a_tenth_of_a_second_was_given() -> None:
    encoder = Mp3Encoder(24_000)

    assert any(encoder.encode(tone(24_000, 0.02)) for _ in range(5))


def test_bit_rate_is_constant_at_64_kbps() -> None:
    mp3 = mp3_of(tone(24_000, 10), 24_000, 4800)

    assert len(mp3) * 8 / 10 == pytest.approx(64_000, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12))
def test_size_of_the_pieces_makes_no_difference(sizes: list[int]) -> None:
    pcm = tone(16_000, 0.5)
    encoder = Mp3Encoder(16_000)
    mp3, at = b"", 0
    for size in sizes:
        mp3 += encoder.encode(pcm[at : at + 2 * size])
        at += 2 * size
    mp3 += encoder.encode(pcm[at:]) + encoder.finish()

    assert mp3 == mp3_of(pcm, 16_000, len(pcm))


def test_nothing_in_is_nothing_out() -> None:
    encoder = Mp3Encoder(24_000)

    assert encoder.encode(b"") + encoder.finish() == b""


def test_half_a_sample_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="half a sample"):
        Mp3Encoder(24_000).encode(b"\0\0\0")


def test_ffmpeg_decodes_it_without_a_complaint() -> None:
    ran = subprocess.run(
        [find_tool("ffmpeg"), "-v", "warning", "-f", "mp3", "-i", "pipe:", "-f", "s16le", "pipe:"],
        input=mp3_of(tone(24_000, 3), 24_000, 960),
        capture_output=True,
        check=True,
    )

    assert b"rror" not in ran.stderr
    assert len(ran.stdout) / 2 / 24_000 == pytest.approx(3, abs=0.1)
