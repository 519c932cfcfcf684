"""The ear of a line: when somebody begins to speak, and when they have finished."""

from dataclasses import replace

import numpy as np
import pytest

from app.services.audio.samples import HEADER_BYTES
from app.services.audio.silero import Floats
from app.services.live_voice.config import DetectionKind, Eagerness, TurnDetection
from app.services.live_voice.errors import LiveInputRefused
from app.services.live_voice.turn_detector import (
    SpeechBegan,
    SpeechEnded,
    SpeechEvent,
    SpeechLasted,
    SpeechPaused,
    SpeechResumed,
    TurnDetector,
)
from tests.support.application import AUDIO

DETECTION = TurnDetection()
RATE_HZ = 16_000


def recording(name: str) -> Floats:
    data = (AUDIO / name).read_bytes()[HEADER_BYTES:]
    return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)


def silence(seconds: float) -> Floats:
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def listen(
    detector: TurnDetector, sound: Floats, frame: int = 320
) -> list[tuple[float, SpeechEvent]]:
    """Return the events with the second of the sound at which each came."""
    told: list[tuple[float, SpeechEvent]] = []
    for start in range(0, len(sound), frame):
        came = detector.hear(sound[start : start + frame])
        told += [((start + frame) / RATE_HZ, event) for event in came]
    return told


def turns(detector: TurnDetector, sound: Floats) -> list[tuple[float, SpeechEvent]]:
    """Return the beginnings and ends alone."""
    told = listen(detector, sound)
    return [(at, event) for at, event in told if isinstance(event, SpeechBegan | SpeechEnded)]


def onset(sound: Floats) -> float:
    """Return the second of the first loud sample."""
    return float(np.argmax(np.abs(sound) > 0.02)) / RATE_HZ


@pytest.mark.parametrize("name", ["anna_01.wav", "mike_02.wav", "es_01.wav"])
def test_speech_begins_and_ends_once(name: str) -> None:
    sound = np.concatenate([silence(1), recording(name), silence(2)])

    told = turns(TurnDetector(DETECTION), sound)

    (began_at, began), (_, ended) = told
    assert isinstance(began, SpeechBegan)
    assert isinstance(ended, SpeechEnded)
    assert began_at - onset(sound) < 0.4
    assert began.at_ms < onset(sound) * 1000 < began.at_ms + 700
    assert len(ended.pcm) / 2 / RATE_HZ == pytest.approx(len(recording(name)) / RATE_HZ, abs=1)


def test_silence_of_the_given_length_ends_a_turn() -> None:
    speech = recording("anna_01.wav")
    sound = np.concatenate([speech, silence(3)])
    ends = {
        each: listen(TurnDetector(replace(DETECTION, silence_duration_ms=each)), sound)[-1][0]
        for each in (400, 1400)
    }

    assert ends[1400] - ends[400] == pytest.approx(1.0, abs=0.04)


def test_a_short_pause_is_no_end_and_the_recording_has_both_halves() -> None:
    speech = recording("anna_01.wav")
    sound = np.concatenate([speech, speech, silence(3)])

    told = turns(TurnDetector(replace(DETECTION, silence_duration_ms=2000)), sound)

    assert [type(event) for _, event in told] == [SpeechBegan, SpeechEnded]


def test_silence_of_192_ms_is_told_with_what_was_said_so_far() -> None:
    sound = np.concatenate([recording("anna_05.wav"), silence(2)])  # with a pause in the middle

    told = listen(TurnDetector(DETECTION), sound)

    assert [type(event) for _, event in told] == [
        SpeechBegan, SpeechLasted, SpeechPaused, SpeechResumed, SpeechPaused, SpeechEnded,
    ]  # fmt: skip
    began, _, early, resumed, late, ended = (event for _, event in told)
    assert isinstance(early, SpeechPaused)
    assert isinstance(late, SpeechPaused)
    assert isinstance(ended, SpeechEnded)
    assert isinstance(resumed, SpeechResumed)
    assert isinstance(began, SpeechBegan)
    assert ended.pcm.startswith(late.pcm)
    assert late.pcm.startswith(early.pcm)
    assert told[5][0] - told[4][0] == pytest.approx(0.5 - 0.192, abs=0.04)


def test_a_cough_does_not_last() -> None:
    cough = recording("anna_01.wav")[: RATE_HZ * 7 // 10]

    told = listen(TurnDetector(DETECTION), np.concatenate([cough, silence(2)]))

    assert [type(event) for _, event in told] == [SpeechBegan, SpeechPaused, SpeechEnded]


@pytest.mark.parametrize("silence_ms", [100, 200])
def test_nothing_is_told_ahead_where_the_end_comes_as_soon(silence_ms: int) -> None:
    detection = replace(DETECTION, silence_duration_ms=silence_ms)

    told = listen(TurnDetector(detection), np.concatenate([recording("anna_01.wav"), silence(2)]))

    assert SpeechPaused not in [type(event) for _, event in told]


def test_noise_is_no_speech() -> None:
    noise = np.random.default_rng(1).normal(0, 0.05, 5 * RATE_HZ).astype(np.float32)

    assert listen(TurnDetector(DETECTION), noise) == []


def test_without_a_model_semantic_detection_is_a_longer_silence() -> None:
    sound = np.concatenate([recording("anna_01.wav"), silence(3)])
    semantic = TurnDetection(DetectionKind.SEMANTIC)

    late, early = (listen(TurnDetector(each), sound)[-1][0] for each in (semantic, DETECTION))

    assert late - early == pytest.approx(0.1, abs=0.04)


def listen_with_verdict(
    eagerness: Eagerness, *, is_finished: bool | None, sound: Floats
) -> list[tuple[float, SpeechEvent]]:
    """Listen with a model that says the same of each pause, at once."""
    detection = TurnDetection(DetectionKind.SEMANTIC, eagerness=eagerness)
    detector = TurnDetector(detection, lambda: True)
    told: list[tuple[float, SpeechEvent]] = []
    for start in range(0, len(sound), 320):
        for event in detector.hear(sound[start : start + 320]):
            told.append(((start + 320) / RATE_HZ, event))
            if isinstance(event, SpeechPaused):
                assert event.asks is not None
                assert detector.take_verdict(event.asks, is_finished=is_finished)
    return told


@pytest.mark.parametrize(
    ("eagerness", "finished_ms", "unfinished_ms"),
    [("low", 512, 8000), ("medium", 384, 4000), ("auto", 384, 4000), ("high", 192, 2000)],
)
def test_verdict_of_a_model_ends_a_turn_sooner_or_later(
    eagerness: str, finished_ms: int, unfinished_ms: int
) -> None:
    sound = np.concatenate([recording("anna_01.wav"), silence(9)])
    for is_finished, expected_ms in ((True, finished_ms), (False, unfinished_ms), (None, 600)):
        told = listen_with_verdict(Eagerness(eagerness), is_finished=is_finished, sound=sound)
        (paused_at, paused), (ended_at, ended) = told[-2:]
        assert isinstance(paused, SpeechPaused)
        assert isinstance(ended, SpeechEnded)
        assert ended.pcm.startswith(paused.pcm)
        assert (ended_at - paused_at) * 1000 == pytest.approx(expected_ms - 128, abs=40)


def test_verdict_of_a_pause_that_is_over_says_nothing() -> None:
    detector = TurnDetector(TurnDetection(DetectionKind.SEMANTIC), lambda: True)
    sound = recording("anna_05.wav")  # with a pause in the middle
    pauses = [event for _, event in listen(detector, sound) if isinstance(event, SpeechPaused)]

    first, last = pauses[0], pauses[-1]
    assert first.asks is not None
    assert last.asks is not None
    assert first.asks != last.asks
    assert not detector.take_verdict(first.asks, is_finished=True)
    assert detector.take_verdict(last.asks, is_finished=True)


def test_a_turn_ends_after_two_minutes() -> None:
    speech = recording("anna_01.wav")[RATE_HZ // 2 : RATE_HZ * 5 // 2]
    sound = np.tile(speech, 65)

    told = listen(TurnDetector(replace(DETECTION, silence_duration_ms=5000)), sound, 32_000)

    ended = next(event for _, event in told if isinstance(event, SpeechEnded))
    assert len(ended.pcm) / 2 / RATE_HZ == pytest.approx(120, abs=1)


def test_without_detection_all_is_kept_until_it_is_committed() -> None:
    detector = TurnDetector(None)
    speech = recording("anna_01.wav")
    assert listen(detector, speech) == []

    assert len(detector.take()) == 2 * len(speech)
    with pytest.raises(LiveInputRefused) as refused:
        detector.take()
    assert refused.value.reason == "input_audio_buffer_commit_empty"


def test_detection_can_be_switched_in_the_middle() -> None:
    detector = TurnDetector(None)
    listen(detector, silence(1.01))
    detector.change(DETECTION)
    listen(detector, silence(0.51))
    detector.change(None)
    listen(detector, silence(0.3))
    detector.change(DETECTION)
    told = turns(detector, np.concatenate([silence(0.5), recording("anna_01.wav"), silence(1)]))

    assert [type(event) for _, event in told] == [SpeechBegan, SpeechEnded]
    began = told[0][1]
    assert isinstance(began, SpeechBegan)
    expected_ms = 1000 * (1.01 + 0.51 + 0.3 + 0.5 + onset(recording("anna_01.wav"))) - 300
    assert began.at_ms == pytest.approx(expected_ms, abs=200)


def test_the_buffer_is_full_after_ten_minutes() -> None:
    detector = TurnDetector(None)
    for _ in range(60):
        detector.hear(silence(10))
    with pytest.raises(LiveInputRefused) as refused:
        detector.hear(silence(0.02))
    assert refused.value.reason == "input_audio_buffer_full"
    detector.clear()
    detector.hear(silence(0.02))
