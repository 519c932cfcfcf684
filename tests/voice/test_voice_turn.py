"""The stages of a voice turn: what is spoken, and where it is in what is written."""

from collections.abc import AsyncGenerator

import anyio
import pytest

from app.services.ports import AudioFormat, Recording
from app.services.turns import AudioClip, Persona
from app.services.turns.context.heard_text import heard_text
from app.services.voice.turn import VoiceTurn, VoiceTurns
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber

pytestmark = pytest.mark.anyio

PERSONA = Persona(1, "", None, None, None, None, voice=None, language="en-GB")
WITH_CODE = "Look at **this** line.\n\n```python\nprint(1)\n```\n\nThat is it.\n```\nend\n```\n"


@pytest.fixture
def voice(speaker: FakeSpeaker, transcriber: FakeTranscriber) -> VoiceTurn:
    recording = Recording(b"sound", AudioFormat.WAV, 1.5)
    return VoiceTurns(transcriber, speaker, "nova").make(recording, has_clips=True)


async def letters(text: str) -> AsyncGenerator[str]:
    for letter in text:
        yield letter


def ignore_clip(_: AudioClip) -> None:
    pass


def ignore_name(_: str) -> None:
    pass


async def speak(voice: VoiceTurn, text: str) -> tuple[list[AudioClip], list[str]]:
    clips: list[AudioClip] = []
    marks: list[str] = []
    await voice.speak(PERSONA, letters(text), clips.append, marks.append)
    return clips, marks


async def test_language_of_the_agent_is_told_as_the_transcriber_knows_it(
    voice: VoiceTurn, transcriber: FakeTranscriber
) -> None:
    heard = await voice.transcribe(PERSONA, lambda _words: None)

    assert transcriber.languages == ["en"]
    assert heard.text == transcriber.text


async def test_pieces_cover_all_that_is_written_and_say_what_is_said(
    voice: VoiceTurn, speaker: FakeSpeaker
) -> None:
    clips, marks = await speak(voice, WITH_CODE)

    pieces = voice.pieces()
    said = [piece.text for piece in pieces]
    assert said == [clip.text for clip in clips] == [text for text, _ in speaker.said]
    assert said[0] == "Look at this line."
    assert [piece.content_start for piece in pieces] == [
        0,
        *(piece.content_end for piece in pieces[:-1]),
    ]
    assert WITH_CODE[: pieces[-1].content_end].rstrip() == WITH_CODE.rstrip()
    assert voice.spoken_characters == sum(map(len, said))
    assert b"".join(piece.mp3 or b"" for piece in pieces) == b"".join(voice.mp3)
    assert set(marks) == {"first_sentence_ms", "first_audio_ms"}
    played_ms = pieces[-1].start_ms + pieces[-1].duration_ms
    assert heard_text(WITH_CODE, pieces, played_ms) is None


@pytest.mark.parametrize("text", ["```\ncode\n", "...", "🙂"])
async def test_answer_with_little_to_say_has_some_sound(voice: VoiceTurn, text: str) -> None:
    await speak(voice, text)

    assert voice.mp3
    assert len(voice.pieces()) == 1


async def test_sentence_that_breaks_off_is_a_piece_as_far_as_it_was_spoken(
    voice: VoiceTurn, speaker: FakeSpeaker
) -> None:
    spoken_ms = 20 * len("One sentence is whole.")
    arrived = anyio.Event()

    async def letters_then_nothing() -> AsyncGenerator[str]:
        for letter in "One sentence is whole. The next one breaks off here. And":
            yield letter
        await anyio.sleep_forever()

    async def speak_half(
        text: str, *, voice: str, speed: float = 1, is_urgent: bool = True
    ) -> AsyncGenerator[bytes]:
        del is_urgent
        assert (voice, speed) == ("nova", 1)
        samples = bytes(2 * 480 * len(text))
        if "breaks" in text:
            yield samples[: len(samples) // 4 * 2]
            arrived.set()
            await anyio.sleep_forever()
        yield samples

    speaker.speak = speak_half  # pyright: ignore[reportAttributeAccessIssue]  # the same port
    async with anyio.create_task_group() as group:
        group.start_soon(voice.speak, PERSONA, letters_then_nothing(), ignore_clip, ignore_name)
        with anyio.fail_after(60):
            await arrived.wait()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()

    whole, half = voice.pieces()
    assert whole.duration_ms == half.start_ms == spoken_ms
    assert half.text == "The next one"
    assert half.content_end - half.content_start < len("The next one breaks off here. ")
