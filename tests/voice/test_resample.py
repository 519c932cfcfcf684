"""The detector hears at 16 kHz what was recorded at any rate."""

import numpy as np
import pytest

from app.services.audio.resample import BLOCK_SAMPLES, Resampler
from app.services.audio.silero import Floats

RATES_HZ = (4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 44_101, 48_000, 192_000)


def tone(rate_hz: int, seconds: float, hz: float = 100) -> Floats:
    time = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def resampled(sound: Floats, rate_hz: int, piece_samples: int) -> list[Floats]:
    resampler = Resampler(rate_hz)
    blocks: list[Floats] = []
    for start in range(0, len(sound), piece_samples):
        blocks += resampler.feed(sound[start : start + piece_samples])
    return [*blocks, *resampler.finish()]


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_tone_is_the_same_at_16_khz_without_a_seam(rate_hz: int) -> None:
    blocks = resampled(tone(rate_hz, 2.1), rate_hz, 1000)

    assert {len(block) for block in blocks[:-1]} == {BLOCK_SAMPLES}
    heard, expected = np.concatenate(blocks), tone(16_000, 2.1)
    assert len(heard) == pytest.approx(len(expected), abs=1)
    inside = slice(200, 33_000)  # it begins and ends suddenly
    # Where blocks meet, half a sample of the input may be missing: 45 microseconds at 11 kHz.
    assert np.abs(heard[inside] - expected[inside]).max() < 0.05


@pytest.mark.parametrize("piece_samples", [1, 960, 100_000])
def test_pieces_of_any_size_make_the_same_sound(piece_samples: int) -> None:
    sound = tone(48_000, 0.7)

    heard = np.concatenate(resampled(sound, 48_000, piece_samples))

    assert heard == pytest.approx(np.concatenate(resampled(sound, 48_000, 4096)))


def test_what_a_lower_rate_cannot_hold_is_left_out() -> None:
    heard = np.concatenate(resampled(tone(48_000, 2, hz=12_000), 48_000, 4800))

    assert np.abs(heard[200:-200]).max() < 0.01


def test_what_is_no_number_or_too_loud_spoils_nothing() -> None:
    sound = tone(48_000, 2)
    sound[1000:1010] = np.nan
    sound[2000] = np.inf

    heard = np.concatenate(resampled(sound, 48_000, 4800))

    assert np.isfinite(heard).all()
    assert np.abs(heard).max() < 2


def test_nothing_is_nothing() -> None:
    assert resampled(np.zeros(0, np.float32), 44_100, 10) == []
