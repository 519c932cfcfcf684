"""pipecat's service for OpenAI's Realtime API against our server; prints what it found as JSON.

`pipecat_client.py URL KEY SPEECH`: `SPEECH` is PCM of 24 kHz. pipecat does not take up a line
that was lost.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
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
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.services.openai.realtime.events import ConversationItemTruncateEvent
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner

RATE = 24_000
FRAME = RATE // 50
SECONDS = 150


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
    url, key, speech_path = sys.argv[1:]
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    speech = Path(speech_path).read_bytes()
    service = OpenAIRealtimeLLMService(
        api_key=key,
        base_url=f"{url.replace('http', 'ws')}/realtime",
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

    context = LLMContext([{"role": "user", "content": "Hi."}], tools=ToolsSchema([weather]))
    aggregators = LLMContextAggregatorPair(context)
    above, below = Listener(), Listener()
    pipeline = Pipeline([aggregators.user(), above, service, below, aggregators.assistant()])
    task = PipelineWorker(pipeline, params=PipelineParams(audio_in_sample_rate=RATE))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(task)
    running = asyncio.create_task(runner.run())

    async def speak(pcm: bytes) -> None:
        for start in range(0, len(pcm), 2 * FRAME):
            await task.queue_frame(InputAudioRawFrame(pcm[start : start + 2 * FRAME], RATE, 1))
            await asyncio.sleep(0.01)

    def answer(start: int) -> dict[str, Any]:
        """Return what was said since `start`."""
        sound = [frame.audio for frame in below.of(TTSAudioRawFrame, start)]
        words = [frame.text for frame in below.of(TTSTextFrame, start)]
        return {"text": "".join(words), "seconds": sum(map(len, sound)) / 2 / RATE}

    async def answer_after(start: int) -> dict[str, Any]:
        def has_ended() -> bool:
            spoken = below.of(TTSTextFrame, start)
            if not spoken:
                return False
            return bool(below.of(LLMFullResponseEndFrame, below.frames.index(spoken[-1])))

        await below.until(has_ended)
        return answer(start)

    async with asyncio.timeout(SECONDS):
        await task.queue_frame(LLMContextFrame(context))
        written = await answer_after(0)
        place = len(below.frames)
        await speak(speech)  # interrupts the answer while it is played, and asks
        await below.until(lambda: bool(below.of(InterruptionFrame, place)))
        await speak(bytes(2 * RATE * 3 // 2))
        spoken = await answer_after(place)
        errors = [frame.error for frame in above.of(ErrorFrame) + below.of(ErrorFrame)]
        item = ConversationItemTruncateEvent(
            item_id="item_unknown", content_index=0, audio_end_ms=1
        )
        await service.send_client_event(item)
        await below.until(lambda: len(above.of(ErrorFrame) + below.of(ErrorFrame)) > len(errors))
        found = {
            "written": written,
            "spoken": spoken,
            "transcripts": [frame.text for frame in above.of(TranscriptionFrame)],
            "cities": cities,
            "errors": errors,
        }
    await task.queue_frame(EndFrame())
    await running
    print(json.dumps(found))


asyncio.run(main())
