"""`semantic_vad` on a line: a model is asked in each pause, and its verdict ends the turn."""

import pytest

from app.core.config import Settings
from app.core.database import Database
from app.state import Providers, build_state
from tests.live.conftest import configure, line_of, say, silence
from tests.support.fake_providers import FakeTranscriber
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


class FakeJudge:
    """Says the same of whatever it hears, once it is asked to prepare."""

    def __init__(self, answer: float) -> None:
        self.is_ready = False
        self.answer = answer
        self.heard: list[bytes] = []

    def prepare(self) -> None:
        self.is_ready = True

    async def probability_of_end(self, pcm: bytes) -> float:
        self.heard.append(pcm)
        return self.answer


@pytest.mark.parametrize("answer", [0.9, 0.1])
async def test_model_is_asked_once_a_line_wants_it_and_what_is_finished_is_transcribed_ahead(
    settings: Settings, database: Database, providers: Providers, transcriber: FakeTranscriber,
    spoken: bytes, answer: float,
) -> None:  # fmt: skip
    judge = FakeJudge(answer)
    own: Providers = {**providers, "turn_end_judge": judge}
    async with build_state(settings, database, own) as state, line_of(settings, state)() as line:
        assert not judge.is_ready
        await configure(line, audio={"input": {"turn_detection": {"type": "semantic_vad"}}})
        assert judge.is_ready
        await say(line, spoken[: -48 * 150])
        await until(lambda: judge.heard)
        await configure(line)
        if answer > 0.5:
            await until(lambda: transcriber.recordings)
            await say(line, silence(300))
        else:
            await say(line, silence(3000))
            await configure(line)
            assert not transcriber.recordings
            assert "input_audio_buffer.speech_stopped" not in line.types
            await say(line, silence(1000))
        await line.until("response.done")

    assert len(judge.heard) == len(transcriber.recordings) == 1
