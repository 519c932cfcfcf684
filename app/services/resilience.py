"""Patience with providers: retries, and a breaker that spares a provider that is down.

Each class here wraps one port and fulfils it. Retries: at most two, with full jitter, never
after the first item reached the caller, never where the provider said no.
"""

import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

import anyio

from app.services.ports import (
    ChatFinished,
    ChatModel,
    ChatRequest,
    OnWords,
    ProviderError,
    ProviderUnavailable,
    Recording,
    Speaker,
    TextDelta,
    Transcriber,
    Transcript,
)

T = TypeVar("T")

_ATTEMPTS = 3
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 10.0
"""A provider that asks for more patience than this gets none: the caller is told instead."""


class Breaker:
    """Opens after `threshold` failures in a row; then one probe each `pause_seconds` closes it."""

    def __init__(self, *, threshold: int = 5, pause_seconds: float = 5.0) -> None:
        self._threshold = threshold
        self._pause_seconds = pause_seconds
        self._failures = 0
        self._probe_at = 0.0

    def enter(self) -> None:
        """Let a request through, or raise `ProviderUnavailable` at once."""
        if self._failures < self._threshold:
            return
        now = time.monotonic()
        if now < self._probe_at:
            raise ProviderUnavailable(
                "The AI provider failed several times in a row and is left alone for a moment.",
                retry_after_seconds=self._probe_at - now,
            )
        self._probe_at = now + self._pause_seconds  # this request is the probe

    def succeeded(self) -> None:
        """Close."""
        self._failures = 0

    def failed(self) -> None:
        """Count a failure that speaks against the provider, not against the request."""
        self._failures += 1
        if self._failures >= self._threshold:
            self._probe_at = time.monotonic() + self._pause_seconds


async def _patiently(
    breaker: Breaker,
    attempt_once: Callable[[], AsyncGenerator[T]],
    has_begun: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[T]:
    """Yield what an attempt yields; `has_begun` says that something left another way."""
    failure: ProviderError | None = None
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            breaker.enter()
        except ProviderUnavailable as refusal:
            raise (failure or refusal) from None  # what went wrong here says more
        begun = False
        try:
            async with aclosing(attempt_once()) as items:
                async for item in items:
                    begun = True
                    yield item
        except ProviderError as error:
            delay = _delay_seconds(attempt, error)
            if error.retryable:
                breaker.failed()
            else:
                breaker.succeeded()  # it answered
            if begun or has_begun() or not error.retryable or attempt == _ATTEMPTS or delay is None:
                raise
            failure = error
            await anyio.sleep(delay)
        else:
            breaker.succeeded()
            return


def _delay_seconds(attempt: int, error: ProviderError) -> float | None:
    if error.retry_after_seconds is not None:
        wanted = error.retry_after_seconds
        return wanted if wanted <= _LONGEST_DELAY_SECONDS else None
    return random.uniform(0, _FIRST_DELAY_SECONDS * 2**attempt)  # noqa: S311  # jitter, no secret


class PatientChatModel:
    """Fulfils `ChatModel` over another one."""

    def __init__(self, chat_model: ChatModel, breaker: Breaker) -> None:
        self._chat_model = chat_model
        self._breaker = breaker

    @property
    def context_tokens(self) -> int:
        """The inner model's."""
        return self._chat_model.context_tokens

    def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        """Fulfil `ChatModel.stream`."""
        return _patiently(self._breaker, lambda: self._chat_model.stream(request))


class PatientTranscriber:
    """Fulfils `Transcriber` over another one."""

    def __init__(self, transcriber: Transcriber, breaker: Breaker) -> None:
        self._transcriber = transcriber
        self._breaker = breaker

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Fulfil `Transcriber.transcribe`."""

        async def once() -> AsyncGenerator[Transcript]:
            yield await self._transcriber.transcribe(
                recording, language=language, on_words=pass_on if on_words else None
            )

        def pass_on(words: str) -> None:
            nonlocal has_begun
            has_begun = True
            if on_words:
                on_words(words)

        has_begun = False
        attempts = _patiently(self._breaker, once, lambda: has_begun)
        async with aclosing(attempts) as transcripts:
            return await anext(transcripts)


class PatientSpeaker:
    """Fulfils `Speaker` over another one."""

    def __init__(self, speaker: Speaker, breaker: Breaker) -> None:
        self._speaker = speaker
        self._breaker = breaker

    @property
    def sample_rate_hz(self) -> int:
        """The inner speaker's."""
        return self._speaker.sample_rate_hz

    @property
    def max_characters(self) -> int:
        """The inner speaker's."""
        return self._speaker.max_characters

    def speak(self, text: str, *, voice: str) -> AsyncGenerator[bytes]:
        """Fulfil `Speaker.speak`."""
        return _patiently(self._breaker, lambda: self._speaker.speak(text, voice=voice))
