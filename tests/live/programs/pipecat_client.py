"""pipecat's service for OpenAI's Realtime API against our server; prints what it found as JSON.

`pipecat_client.py SERVER KEY SPEECH`: `SPEECH` is PCM of 24 kHz. pipecat does not take up a line
that was lost.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService

RATE = 24_000
FRAME = RATE // 50
SECONDS = 60


class Listener(FrameProcessor):
    """Notes the frames that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.frames.append(frame)
        await self.push_frame(frame, direction)

    def of(self, kind: type[Frame], start: int = 0) -> list[Any]:
        return [frame for frame in self.frames[start:] if isinstance(frame, kind)]

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await asyncio.sleep(0.01)


async def main() -> None:
    server, key, speech_path = sys.argv[1:]
    logger.remove()
    logger.add(sys.stderr, level="DEBUG")
    speech = Path(speech_path).read_bytes()
    service = OpenAIRealtimeLLMService(
        api_key=key,
        base_url=f"{server.replace('http', 'ws')}/v1/realtime",
        settings=OpenAIRealtimeLLMService.Settings(model="agent-ada"),
    )
    cities: list[str] = []

    async def weather(params: FunctionCallParams, city: str) -> None:
        """Tell the weather.

        Args:
            city: Where.
        """
        cities.append(city)
        await params.result_callback({"weather": "sunny"})

    context = LLMContext([{"role": "user", "content": "Hi."}])
    aggregators = LLMContextAggregatorPair(context)
    above, below = Listener(), Listener()
    pipeline = Pipeline([aggregators.user(), above, service, below, aggregators.assistant()])
    task = PipelineTask(pipeline, params=PipelineParams(audio_in_sample_rate=RATE))
    running = asyncio.create_task(PipelineRunner(handle_sigint=False).run(task))

    async def speak(pcm: bytes) -> None:
        for start in range(0, len(pcm), 2 * FRAME):
            await task.queue_frame(InputAudioRawFrame(pcm[start : start + 2 * FRAME], RATE, 1))
            await asyncio.sleep(0.01)

    def ends() -> int:
        return len(below.of(LLMFullResponseEndFrame))

    def seconds(start: int = 0) -> float:
        return sum(len(frame.audio) for frame in below.of(TTSAudioRawFrame, start)) / 2 / RATE

    def words(start: int = 0) -> str:
        return "".join(frame.text for frame in below.of(TTSTextFrame, start))

    async with asyncio.timeout(SECONDS):
        await task.queue_frame(LLMContextFrame(context))
        await below.until(lambda: ends() == 1)
        written = {"text": words(), "seconds": seconds()}
        place = len(below.frames)
        await speak(speech + bytes(2 * RATE * 3 // 2))
        await below.until(lambda: ends() >= 2 and seconds(place) > 0)
        transcripts = [frame.text for frame in above.of(TranscriptionFrame)]
        spoken = {"text": words(place), "seconds": seconds(place)}
        # somebody interrupts the answer while it is played
        await speak(speech)
        await below.until(lambda: bool(below.of(InterruptionFrame, place)))
        place = len(below.frames)
        await speak(bytes(2 * RATE * 3 // 2))
        await below.until(lambda: words(place).strip() != "")
        await below.until(lambda: isinstance(below.frames[-1], LLMFullResponseEndFrame))
        errors = [frame.error for frame in below.of(ErrorFrame) + above.of(ErrorFrame)]
        print(json.dumps({"written": written, "spoken": spoken, "transcripts": transcripts, "cities": cities, "errors": errors}))
    await task.queue_frame(EndFrame())
    await running


asyncio.run(main())
