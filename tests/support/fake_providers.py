"""Stand-ins for the outside world. They fulfil the ports, so a type checker vouches for them."""

import math
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio

from app.services.ports import (
    ChatFinished,
    ChatItem,
    ChatRequest,
    FinishReason,
    OnWords,
    ProviderError,
    Recording,
    TextDelta,
    ToolCallDelta,
    Transcript,
)
from app.services.transcript_times import NO_TIMES, TimedText, TimeUnit


class FakeChatModel:
    """Answers with `answer`, a word at a time, after `while_thinking`; remembers every request.

    All of the answer is there when `before_finish` is awaited.
    """

    def __init__(self) -> None:
        self.requests: list[ChatRequest] = []
        self.answer = "Hello there!"
        self.finish_reason = FinishReason.STOP
        self.counts: tuple[int | None, int | None, int | None] = (7, 2, 3)
        """Prompt, cached and completion tokens, as it tells them."""
        self.while_thinking: Callable[[], Awaitable[None]] | None = None
        self.before_finish: Callable[[], Awaitable[None]] | None = None
        self.context_tokens = 8000
        self.calls: list[tuple[str, str]] = []
        """Names and arguments of the tools that the next answer calls instead."""

    @property
    def prompts(self) -> list[list[tuple[str, str]]]:
        """What was asked, as pairs of role and content."""
        return [
            [(message.role, message.content) for message in request.messages]
            for request in self.requests
        ]

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:
        """Fulfil `ChatModel.stream`."""
        self.requests.append(request)
        if self.while_thinking:
            await self.while_thinking()
        if self.calls:
            calls, self.calls = self.calls, []
            for place, (name, arguments) in enumerate(calls):
                yield ToolCallDelta(place, f"call_{place}", name, arguments)
            yield ChatFinished(FinishReason.TOOL_CALLS, "fake-1", *self.counts)
            return
        for word in filter(None, self.answer.split(" ")):
            await anyio.lowlevel.checkpoint()
            yield TextDelta(word if word == self.answer.split(" ")[0] else " " + word)
        if self.before_finish:
            await self.before_finish()
        yield ChatFinished(self.finish_reason, "fake-1", *self.counts)


class FakeTranscriber:
    """Hears `text` in whatever it is given; remembers what that was."""

    def __init__(self) -> None:
        self.recordings: list[Recording] = []
        self.languages: list[str | None] = []
        self.text = "What time is it?"
        self.prompts: list[str | None] = []
        self.time_units: frozenset[TimeUnit] = frozenset(TimeUnit)
        self.while_hearing: Callable[[], Awaitable[None]] | None = None
        self.failure: ProviderError | None = None
        """What the next recording fails with."""

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        prompt: str | None = None,
        times: frozenset[TimeUnit] = NO_TIMES,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Fulfil `Transcriber.transcribe`. A word takes half a second."""
        self.recordings.append(recording)
        self.languages.append(language)
        self.prompts.append(prompt)
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        if self.while_hearing:
            await self.while_hearing()
        if on_words:
            on_words(self.text[:4])
            on_words(self.text[4:])
        spoken = self.text.split()
        words = tuple(TimedText(word, n / 2, (n + 1) / 2) for n, word in enumerate(spoken))
        segment = TimedText(self.text, 0.0, len(spoken) / 2)
        return Transcript(
            self.text,
            language or "en",
            (segment,) if TimeUnit.SEGMENT in times and spoken else (),
            words if TimeUnit.WORD in times else (),
        )


class FakeSpeaker:
    """Speaks a tone of 20 ms for each character; remembers what it said, and as whom."""

    sample_rate_hz = 24000
    max_characters = 400
    voices: frozenset[str] | None = None
    has_speeds = True

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.speeds: list[float] = []
        self.while_speaking: Callable[[], Awaitable[None]] | None = None

    async def speak(
        self,
        text: str,
        *,
        voice: str,
        speed: float = 1,
        is_urgent: bool = True,  # noqa: ARG002
    ) -> AsyncGenerator[bytes]:
        """Fulfil `Speaker.speak`."""
        self.said.append((text, voice))
        self.speeds.append(speed)
        if self.while_speaking:
            await self.while_speaking()
        count = len(text) * self.sample_rate_hz // 50
        tone = (
            int(8000 * math.sin(2 * math.pi * 440 * n / self.sample_rate_hz)) for n in range(count)
        )
        pcm = b"".join(struct.pack("<h", sample) for sample in tone)
        for start in range(0, len(pcm), 4800):
            await anyio.lowlevel.checkpoint()
            yield pcm[start : start + 4800]
