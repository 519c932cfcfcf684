"""The events that a line's client has not been sent yet; those of an answer can be taken back."""

import asyncio
from collections import deque

from app.services.live_voice.events import AnswerSound, LineEvent, ResponseState


class Outbox:
    """A queue of events with one reader."""

    def __init__(self) -> None:
        self._events: deque[LineEvent] = deque()
        self._has_news = asyncio.Event()

    def put(self, event: LineEvent) -> None:
        """Add an event at the end."""
        self._events.append(event)
        self._has_news.set()

    def take_back_sound(self, response: ResponseState) -> int:
        """Drop what is not sent yet of an answer's sound; return how many bytes that was."""
        kept: deque[LineEvent] = deque()
        dropped = 0
        for event in self._events:
            if isinstance(event, AnswerSound) and event.response is response:
                dropped += len(event.pcm)
            else:
                kept.append(event)
        self._events = kept
        return dropped

    async def get(self) -> LineEvent:
        """Return the next event; waits for one."""
        while not self._events:
            self._has_news.clear()
            await self._has_news.wait()
        return self._events.popleft()

    def get_now(self) -> LineEvent | None:
        """Return the next event, or `None` where there is none."""
        return self._events.popleft() if self._events else None
