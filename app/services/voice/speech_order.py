"""Synthesize the sentences of an answer concurrently, and deliver their audio in order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio

from app.core.errors import AppError
from app.services.ports import Speaker

LOOK_AHEAD = 3
"""Maximum number of concurrent syntheses, including the sentence that is being delivered."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A text to synthesize, and its range in the written answer, in characters."""

    text: str
    content_start: int
    content_end: int
    written: str = ""
    """That range itself, with what is not spoken of it."""


@dataclass(frozen=True, slots=True)
class AudioSink:
    """Receiver of the audio. For each utterance: `begin`, `on_sound` with its PCM, `finish`."""

    begin: Callable[[Utterance], None]
    on_sound: Callable[[bytes], Awaitable[None]]
    finish: Callable[[Utterance], Awaitable[None]]


@dataclass(slots=True)
class _SpeechTask:
    """An utterance with the PCM that is synthesized so far."""

    utterance: Utterance
    _pieces: deque[bytes] = field(default_factory=deque[bytes])
    """What is not delivered yet."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_over: bool = False
    _failure: AppError | None = None

    async def speak(self, speaker: Speaker, voice: str, speed: float) -> None:
        text, is_first = self.utterance.text, not self.utterance.content_start
        try:
            spoken = speaker.speak(text, voice=voice, speed=speed, is_urgent=is_first)
            async with aclosing(spoken) as sound:
                async for pcm in sound:
                    self._pieces.append(pcm)
                    self._wake()
        except AppError as error:
            self._failure = error
        self._is_over = True
        self._wake()

    async def sound(self) -> AsyncGenerator[bytes]:
        """Yield PCM as it arrives, then raise the synthesis' `AppError`, if it failed."""
        while True:
            while self._pieces:
                yield self._pieces.popleft()
            if self._is_over:
                break
            await self._changed.wait()
        if self._failure:
            raise self._failure

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def speak_in_order(
    speaker: Speaker,
    voice: str,
    utterances: AsyncGenerator[Utterance],
    sink: AudioSink,
    *,
    speed: float = 1,
) -> None:
    """Deliver the audio of `utterances` to `sink` in order; synthesize up to `LOOK_AHEAD` at once.

    Raises the `AppError` of the first utterance that fails, after the audio before it is delivered.
    On failure or cancellation, all streams of the speaker are closed.
    """
    failure: AppError | None = None
    places = anyio.Semaphore(LOOK_AHEAD)
    send, receive = anyio.create_memory_object_stream[_SpeechTask](LOOK_AHEAD)

    async def take() -> None:
        async with aclosing(utterances), send:
            async for utterance in utterances:
                await places.acquire()
                task = _SpeechTask(utterance)
                send.send_nowait(task)
                group.start_soon(task.speak, speaker, voice, speed)

    # `receive` outlives the tasks: a sentence may become ready during a failure.
    async with receive, anyio.create_task_group() as group:
        group.start_soon(take)
        try:
            async for task in receive:
                sink.begin(task.utterance)
                async with aclosing(task.sound()) as sound:
                    async for pcm in sound:
                        await sink.on_sound(pcm)
                await sink.finish(task.utterance)
                places.release()
        except AppError as error:
            failure = error
            group.cancel_scope.cancel()
    if failure:
        raise failure
