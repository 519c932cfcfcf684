"""Sentences are spoken ahead of each other and heard in their order."""

from collections.abc import AsyncGenerator, Sequence

import anyio
import pytest

from app.services.ports import ProviderError, ProviderUnavailable
from app.services.voice.speech_order import (
    LOOK_AHEAD,
    AudioSink,
    Utterance,
    speak_in_order,
)

pytestmark = pytest.mark.anyio


class SlowSpeaker:
    """Speaks one sample for each character once it is let; remembers who is speaking."""

    sample_rate_hz = 24_000
    max_characters = 400
    voices = None
    has_speeds = False

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.closed: list[str] = []
        self.allowed: dict[str, anyio.Event] = {}
        self.failing: set[str] = set()

    def event(self, text: str) -> anyio.Event:
        return self.allowed.setdefault(text, anyio.Event())

    async def speak(
        self,
        text: str,
        *,
        voice: str,
        speed: float = 1,
        is_urgent: bool = True,  # noqa: ARG002
    ) -> AsyncGenerator[bytes]:
        assert (voice, speed) == ("alloy", 1)
        self.begun.append(text)
        try:
            await self.event(text).wait()
            if text in self.failing:
                raise ProviderUnavailable("Not now.")
            yield text.encode() * 2
        finally:
            self.closed.append(text)


class AudioRecorder:
    """Records the calls of an `AudioSink`."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def sink(self) -> AudioSink:
        async def on_sound(pcm: bytes) -> None:
            self.notes.append(pcm[: len(pcm) // 2].decode())

        async def finish(utterance: Utterance) -> None:
            self.notes.append(f"{utterance.text}>")

        return AudioSink(
            lambda utterance: self.notes.append(f"<{utterance.text}"), on_sound, finish
        )


async def utterances(
    texts: Sequence[str], taken: list[str] | None = None
) -> AsyncGenerator[Utterance]:
    for text in texts:
        if taken is not None:
            taken.append(text)
        yield Utterance(text, 0, 0)


async def until(condition: str, speaker: SlowSpeaker) -> None:
    with anyio.fail_after(60):
        while condition not in speaker.begun:
            await anyio.lowlevel.checkpoint()


async def test_three_are_spoken_at_once_and_heard_in_order() -> None:
    speaker, recorder, texts = SlowSpeaker(), AudioRecorder(), ["a", "b", "c", "d", "e"]

    async with anyio.create_task_group() as group:
        group.start_soon(speak_in_order, speaker, "alloy", utterances(texts), recorder.sink())
        await until("c", speaker)
        await anyio.wait_all_tasks_blocked()
        assert speaker.begun == ["a", "b", "c"]
        assert len(speaker.begun) == LOOK_AHEAD
        speaker.event("c").set()
        speaker.event("b").set()
        await anyio.wait_all_tasks_blocked()
        assert recorder.notes == ["<a"]
        speaker.event("a").set()
        await until("d", speaker)
        speaker.event("d").set()
        speaker.event("e").set()

    assert "".join(recorder.notes) == "<aaa><bbb><ccc><ddd><eee>"
    assert sorted(speaker.closed) == texts


async def test_failure_is_raised_after_what_comes_before_it() -> None:
    speaker, recorder = SlowSpeaker(), AudioRecorder()
    speaker.failing.add("b")
    for text in "abc":
        speaker.event(text).set()
    speaker.allowed["c"] = anyio.Event()

    with pytest.raises(ProviderError):
        await speak_in_order(speaker, "alloy", utterances("abcde"), recorder.sink())

    assert "".join(recorder.notes) == "<aaa><b"
    assert sorted(speaker.closed) == sorted(speaker.begun)


async def test_failure_in_the_moment_of_the_next_sentence_is_that_failure() -> None:
    for steps in range(8):  # between the next sentence and the failure
        speaker, recorder, written = SlowSpeaker(), AudioRecorder(), anyio.Event()
        speaker.failing = {"a"}

        async def sentences(written: anyio.Event) -> AsyncGenerator[Utterance]:
            yield Utterance("a", 0, 0)
            await written.wait()
            yield Utterance("b", 0, 0)

        async def write_and_fail(speaker: SlowSpeaker, written: anyio.Event, steps: int) -> None:
            await until("a", speaker)
            await anyio.wait_all_tasks_blocked()
            speaker.event("a").set()
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            written.set()

        async with anyio.create_task_group() as group:
            group.start_soon(write_and_fail, speaker, written, steps)
            with pytest.raises(ProviderUnavailable):
                await speak_in_order(speaker, "alloy", sentences(written), recorder.sink())

        assert speaker.closed == speaker.begun


async def test_cancelled_speech_leaves_nothing_running() -> None:
    speaker, recorder, taken = SlowSpeaker(), AudioRecorder(), list[str]()

    with anyio.move_on_after(5) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(
                speak_in_order, speaker, "alloy", utterances("abcdef", taken), recorder.sink()
            )
            await until("c", speaker)
            group.cancel_scope.cancel()

    assert not scope.cancelled_caught
    assert sorted(speaker.closed) == ["a", "b", "c"]
    assert taken == ["a", "b", "c", "d"]
    assert recorder.notes == ["<a"]


async def test_nothing_to_say_is_said_at_once() -> None:
    recorder = AudioRecorder()

    await speak_in_order(SlowSpeaker(), "alloy", utterances([]), recorder.sink())

    assert recorder.notes == []
