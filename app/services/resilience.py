"""Patience with providers: retries, and a breaker that spares a provider that is down.

Each class here wraps one port and fulfils it. Retries: at most two, with full jitter, never
after the first item reached the caller, never where the provider said no or is still at work.
"""

import random
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio

from app.core.capabilities import Capability
from app.core.request_context import ProviderCall
from app.services.ports import (
    ChatItem,
    ChatModel,
    ChatRequest,
    OnWords,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    Recording,
    Speaker,
    Transcriber,
    Transcript,
)
from app.services.transcript_times import NO_TIMES, TimeUnit

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]
"""Waits for so many seconds between two attempts."""

_ATTEMPTS = 3
_FIRST_DELAY_SECONDS = 0.25
_LONGEST_DELAY_SECONDS = 10.0
"""A provider that asks for more patience than this gets none: the caller is told instead."""
_BREAKERS_LIMIT = 1000


class ProviderObserver(Protocol):
    """Is told of every attempt at a provider; never raises and never waits."""

    def attempt_ended(self, call: ProviderCall, *, is_whole: bool, will_retry: bool) -> None:
        """Take note of an attempt; `is_whole` is false where it failed or its caller left."""
        ...

    def call_refused(self, capability: str, host: str, model: str | None) -> None:
        """Take note of a call that an open circuit breaker refused."""
        ...


@dataclass(frozen=True, slots=True)
class ProviderTarget:
    """Who serves a capability, as logs and metrics name it, and who is told of the attempts."""

    capability: Capability
    host: str
    model: str | None
    observer: ProviderObserver | None = None

    def attempt_ended(  # noqa: PLR0913  # what is known of an attempt
        self,
        model: str | None,
        attempt: int,
        started_at: float,
        first_item_at: float | None,
        *,
        error: ProviderError | None = None,
        is_whole: bool = False,
        will_retry: bool = False,
    ) -> None:
        """Tell the observer of an attempt that is over now."""
        if self.observer is None:
            return
        call = ProviderCall(
            self.capability.value,
            self.host,
            model or self.model,
            attempt,
            started_at,
            time.monotonic(),
            first_item_at,
            error,
        )
        self.observer.attempt_ended(call, is_whole=is_whole, will_retry=will_retry)

    def call_refused(self, model: str | None) -> None:
        """Tell the observer of a call that the circuit breaker refused."""
        if self.observer:
            self.observer.call_refused(self.capability.value, self.host, model or self.model)


_UNKNOWN_CHAT = ProviderTarget(Capability.CHAT, "", None)
_UNKNOWN_STT = ProviderTarget(Capability.STT, "", None)
_UNKNOWN_TTS = ProviderTarget(Capability.TTS, "", None)


class CircuitBreaker:
    """Opens after `threshold` failures in a row; then one probe each `pause_seconds` closes it.

    Only outages count: an error of one answer, or a limit, says nothing about the next request.
    """

    def __init__(
        self,
        *,
        threshold: int = 5,
        pause_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threshold = threshold
        self._pause_seconds = pause_seconds
        self._clock = clock
        self._failures = 0
        self._probe_at = 0.0

    @property
    def is_open(self) -> bool:
        """True while requests are refused, but for a probe now and then."""
        return self._failures >= self._threshold

    def require_closed(self) -> None:
        """Let a request through, or raise `ProviderUnavailable` at once."""
        if self._failures < self._threshold:
            return
        now = self._clock()
        if now < self._probe_at:
            raise ProviderUnavailable(
                "The AI provider failed several times in a row and is left alone for a moment.",
                retry_after_seconds=self._probe_at - now,
            )
        self._probe_at = now + self._pause_seconds  # this request is the probe

    def record_success(self) -> None:
        """Close: the provider answered."""
        self._failures = 0

    def record_error(self, error: ProviderError) -> None:
        """Count an outage; any other answer closes. Silence after the connection says neither."""
        if error.is_outage:
            self._failures += 1
            if self._failures >= self._threshold:
                self._probe_at = self._clock() + self._pause_seconds
        elif not isinstance(error, ProviderTimeout):
            self.record_success()


class CircuitBreakers:
    """A circuit breaker for each model of one adapter, which has one base URL and credential."""

    def __init__(
        self, default_model: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._default_model = default_model
        self._clock = clock
        self._breakers: OrderedDict[str, CircuitBreaker] = OrderedDict()

    @property
    def is_open(self) -> bool:
        """True while the breaker of any model is open."""
        return any(breaker.is_open for breaker in self._breakers.values())

    def of(self, model: str | None = None) -> CircuitBreaker:
        """Return the breaker of `model`; `None` is the adapter's default model."""
        key = model or self._default_model
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = CircuitBreaker(clock=self._clock)
            self._breakers[key] = breaker
            if len(self._breakers) > _BREAKERS_LIMIT:
                self._breakers.popitem(last=False)
        else:
            self._breakers.move_to_end(key)
        return breaker


async def _with_retries(  # noqa: PLR0913, PLR0917  # what an attempt needs
    breaker: CircuitBreaker,
    target: ProviderTarget,
    attempt_once: Callable[[], AsyncGenerator[T]],
    sleep: Sleep,
    has_begun: Callable[[], bool] = lambda: False,
    model: str | None = None,
) -> AsyncGenerator[T]:
    """Yield what an attempt yields; `has_begun` says that something left another way."""
    failure: ProviderError | None = None
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            breaker.require_closed()
        except ProviderUnavailable as refusal:
            target.call_refused(model)
            raise (failure or refusal) from None  # what went wrong here says more
        first_item_at: float | None = None
        started_at = time.monotonic()
        try:
            async with aclosing(attempt_once()) as items:
                async for item in items:
                    if first_item_at is None:
                        first_item_at = time.monotonic()
                        # Here, because a caller that wants one item never comes back.
                        breaker.record_success()
                    yield item
        except ProviderError as error:
            breaker.record_error(error)
            delay = _delay_seconds(attempt, error)
            begun = first_item_at is not None or has_begun()
            is_last = begun or attempt == _ATTEMPTS or not _is_worth_repeating(error)
            target.attempt_ended(
                model,
                attempt,
                started_at,
                first_item_at,
                error=error,
                will_retry=not is_last and delay is not None,
            )
            if is_last or delay is None:
                raise
            failure = error
            await sleep(delay)
        except BaseException:  # the caller has left, or has all that it needs
            is_whole = first_item_at is not None and target.capability is Capability.STT
            target.attempt_ended(model, attempt, started_at, first_item_at, is_whole=is_whole)
            raise
        else:
            breaker.record_success()
            target.attempt_ended(model, attempt, started_at, first_item_at, is_whole=True)
            return


def _is_worth_repeating(error: ProviderError) -> bool:
    """Tell whether to ask again at once: not where the provider works on its answer, and bills."""
    return error.retryable and (error.is_outage or not isinstance(error, ProviderTimeout))


def _delay_seconds(attempt: int, error: ProviderError) -> float | None:
    if error.retry_after_seconds is not None:
        requested_seconds = error.retry_after_seconds
        return requested_seconds if requested_seconds <= _LONGEST_DELAY_SECONDS else None
    return random.uniform(0, _FIRST_DELAY_SECONDS * 2**attempt)  # noqa: S311  # jitter, no secret


class RetryingChatModel:
    """Fulfils `ChatModel` over another one."""

    def __init__(
        self,
        chat_model: ChatModel,
        breakers: CircuitBreakers,
        sleep: Sleep = anyio.sleep,
        *,
        target: ProviderTarget = _UNKNOWN_CHAT,
    ) -> None:
        self._chat_model = chat_model
        self._breakers = breakers
        self._sleep = sleep
        self._target = target

    @property
    def context_tokens(self) -> int:
        """The inner model's."""
        return self._chat_model.context_tokens

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:
        """Fulfil `ChatModel.stream`."""
        return _with_retries(
            self._breakers.of(request.model),
            self._target,
            lambda: self._chat_model.stream(request),
            self._sleep,
            model=request.model,
        )


class RetryingTranscriber:
    """Fulfils `Transcriber` over another one."""

    def __init__(
        self,
        transcriber: Transcriber,
        breakers: CircuitBreakers,
        sleep: Sleep = anyio.sleep,
        *,
        target: ProviderTarget = _UNKNOWN_STT,
    ) -> None:
        self._transcriber = transcriber
        self._breakers = breakers
        self._sleep = sleep
        self._target = target

    @property
    def time_units(self) -> frozenset[TimeUnit]:
        """The inner transcriber's."""
        return self._transcriber.time_units

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        prompt: str | None = None,
        times: frozenset[TimeUnit] = NO_TIMES,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Fulfil `Transcriber.transcribe`."""

        async def once() -> AsyncGenerator[Transcript]:
            yield await self._transcriber.transcribe(
                recording,
                language=language,
                prompt=prompt,
                times=times,
                on_words=pass_on if on_words else None,
            )

        def pass_on(words: str) -> None:
            nonlocal has_begun
            has_begun = True
            if on_words:
                on_words(words)

        has_begun = False
        attempts = _with_retries(
            self._breakers.of(), self._target, once, self._sleep, lambda: has_begun
        )
        async with aclosing(attempts) as transcripts:
            return await anext(transcripts)


class RetryingSpeaker:
    """Fulfils `Speaker` over another one."""

    def __init__(
        self,
        speaker: Speaker,
        breakers: CircuitBreakers,
        sleep: Sleep = anyio.sleep,
        *,
        target: ProviderTarget = _UNKNOWN_TTS,
    ) -> None:
        self._speaker = speaker
        self._breakers = breakers
        self._sleep = sleep
        self._target = target

    @property
    def sample_rate_hz(self) -> int:
        """The inner speaker's."""
        return self._speaker.sample_rate_hz

    @property
    def max_characters(self) -> int:
        """The inner speaker's."""
        return self._speaker.max_characters

    @property
    def voices(self) -> frozenset[str] | None:
        """The inner speaker's."""
        return self._speaker.voices

    @property
    def has_speeds(self) -> bool:
        """The inner speaker's."""
        return self._speaker.has_speeds

    def speak(
        self, text: str, *, voice: str, speed: float = 1, is_urgent: bool = True
    ) -> AsyncGenerator[bytes]:
        """Fulfil `Speaker.speak`."""
        return _with_retries(
            self._breakers.of(),
            self._target,
            lambda: self._speaker.speak(text, voice=voice, speed=speed, is_urgent=is_urgent),
            self._sleep,
        )
