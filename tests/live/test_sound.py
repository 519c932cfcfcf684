"""What a line does to sound: resampling in blocks of any size, and telephone sound."""

from collections.abc import Callable

import numpy as np
import pytest

from app.services.audio import g711
from app.services.audio.silero import Floats
from app.services.audio.stream_resample import StreamResampler
from app.services.live_voice.playback import Playback

RATES = [(24_000, 16_000), (8_000, 16_000), (24_000, 8_000), (22_050, 24_000), (16_000, 16_000)]


def tone(hz: float, rate_hz: int, seconds: float = 1.0) -> Floats:
    times = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def amplitude(samples: Floats, hz: float, rate_hz: int) -> float:
    """Return how loud the tone is in the middle of `samples`."""
    middle = samples[rate_hz // 10 : -rate_hz // 10]
    times = np.arange(len(middle)) / rate_hz
    waves = np.exp(-2j * np.pi * hz * times)
    return float(2 * abs(np.mean(middle * waves)))


@pytest.mark.parametrize(("rate_hz", "to_hz"), RATES)
def test_tones_that_both_rates_have_stay_and_the_blocks_do_not_matter(
    rate_hz: int, to_hz: int
) -> None:
    sound = tone(1000, rate_hz) + tone(3000, rate_hz)
    whole = StreamResampler(rate_hz, to_hz).feed(sound)
    resampler = StreamResampler(rate_hz, to_hz)
    cuts = [1, 2, 100, 101, 1500, 1501, rate_hz // 2]

    pieces = [resampler.feed(piece) for piece in np.split(sound, cuts)]

    assert np.allclose(np.concatenate(pieces), whole, atol=1e-5)
    assert len(whole) == to_hz
    assert amplitude(whole, 1000, to_hz) == pytest.approx(0.5, rel=0.01)
    assert amplitude(whole, 3000, to_hz) == pytest.approx(0.5, rel=0.01)


def test_tones_that_the_lower_rate_has_not_are_gone() -> None:
    resampled = StreamResampler(24_000, 16_000).feed(tone(10_000, 24_000))

    assert np.abs(resampled[500:-500]).max() < 0.001


@pytest.mark.parametrize("law", ["mu", "a"])
def test_telephone_sound_comes_back_with_little_noise(law: str) -> None:
    encode, decode = {
        "mu": (g711.encode_mu_law, g711.decode_mu_law),
        "a": (g711.encode_a_law, g711.decode_a_law),
    }[law]
    sound = tone(440, 8000)

    heard = decode(encode(sound))

    noise = float(np.mean((heard - sound) ** 2) / np.mean(sound**2))
    assert noise < 0.001
    assert decode(encode(heard)).tolist() == heard.tolist()


@pytest.mark.parametrize(
    ("decode", "codes", "values"),
    [  # from the tables of ITU-T G.711
        (g711.decode_mu_law, bytes([0x00, 0x80, 0xFF, 0x7F]), [-32124, 32124, 0, 0]),
        (g711.decode_a_law, bytes([0x2A, 0xAA, 0xD5, 0x55]), [-32256, 32256, 8, -8]),
    ],
)
def test_telephone_codes_mean_what_the_standard_says(
    decode: Callable[[bytes], Floats], codes: bytes, values: list[int]
) -> None:
    assert [round(float(each) * 32768) for each in decode(codes)] == values


def test_playback_goes_on_where_the_sound_came_too_late() -> None:
    now = 100.0
    playback = Playback(lambda: now)
    playback.send(1.0)
    now = 100.4
    assert (playback.sent_ms, playback.played_ms) == (1000, 400)
    now = 103.0
    assert not playback.is_playing
    playback.send(2.0)
    now = 103.5
    assert playback.played_ms == 1500
    assert playback.ahead_seconds == pytest.approx(1.5)
    playback.take_back(1.0)
    assert (playback.sent_ms, playback.played_ms) == (2000, 1500)
    playback.stop()
    assert not playback.is_playing
