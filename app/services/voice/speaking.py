"""Speaks the pieces of an answer: several at once ahead of what is heard, and in their order."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import anyio

from app.core.errors import AppError
from app.services.ports import Speaker

LOOK_AHEAD = 3
"""Pieces that are with the speaker at once, the one that is heard included."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is to be said, and which part of the written answer it is, in characters."""

    text: str
    content_start: int
    content_end: int


@dataclass(frozen=True, slots=True)
class Listener:
    """Who takes the sound: for each utterance `begin`, its samples in pieces, `finish`."""

    begin: Callable[[Utterance], None]
    on_sound: Callable[[bytes], Awaitable[None]]
    finish: Callable[[Utterance], Awaitable[None]]


@dataclass(slots=True)
class _Spoken:
    """An utterance with what is spoken of it so far."""

    utterance: Utterance
    _pieces: list[bytes] = field(default_factory=list[bytes])
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _is_over: bool = False
    _failure: AppError | None = None

    async def speak(self, speaker: Speaker, voice: str) -> None:
        try:
            async with aclosing(speaker.speak(self.utterance.text, voice=voice)) as sound:
                async for pcm in sound:
                    self._pieces.append(pcm)
                    self._wake()
        except AppError as error:
            self._failure = error
        self._is_over = True
        self._wake()

    async def sound(self) -> AsyncGenerator[bytes]:
        """Yield the samples as they come. Raises the speaker's `AppError` after them."""
        taken = 0
        while True:
            while taken < len(self._pieces):
                taken += 1
                yield self._pieces[taken - 1]
            if self._is_over:
                break
            await self._changed.wait()
        if self._failure:
            raise self._failure

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def speak_in_order(
    speaker: Speaker, voice: str, utterances: AsyncGenerator[Utterance], listener: Listener
) -> None:
    """Give `listener` the utterances in their order; the next ones are spoken meanwhile.

    Raises the `AppError` of the first that fails once what comes before it is out. Cancelled, or
    failed, it closes every stream of the speaker.
    """
    failure: AppError | None = None
    places = anyio.Semaphore(LOOK_AHEAD)
    send, receive = anyio.create_memory_object_stream[_Spoken](LOOK_AHEAD)

    async def take() -> None:
        async with aclosing(utterances), send:
            async for utterance in utterances:
                await places.acquire()
                spoken = _Spoken(utterance)
                send.send_nowait(spoken)
                group.start_soon(spoken.speak, speaker, voice)

    # `receive` outlives the tasks: a sentence may be ready in the moment of a failure.
    async with receive, anyio.create_task_group() as group:
        group.start_soon(take)
        try:
            async for spoken in receive:
                listener.begin(spoken.utterance)
                async with aclosing(spoken.sound()) as sound:
                    async for pcm in sound:
                        await listener.on_sound(pcm)
                await listener.finish(spoken.utterance)
                places.release()
        except AppError as error:
            failure = error
            group.cancel_scope.cancel()
    if failure:
        raise failure
