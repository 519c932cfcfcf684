"""Ports for AI providers: chat model, transcription and speech synthesis, with their errors.

`openai_service` and `local_service` implement these protocols. A provider's own types,
exceptions and field names never leave its adapter.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Protocol

import orjson

from app.core.errors import AppError, ErrorKind
from app.core.value_objects import value_object
from app.services.prompt_lines import PromptContent, PromptLine, PromptResult
from app.services.transcript_times import NO_TIMES, TimedText, TimeUnit


class ProviderError(AppError):
    """The AI provider failed.

    Base class of all provider errors. `retryable` is True where the same request may succeed
    when it is sent again; `retry_after_seconds` is the delay that the provider requested, if any.
    """

    kind = ErrorKind.UPSTREAM
    code = "provider-failed"
    retryable: ClassVar[bool] = False
    http_status: int | None = None
    """The status of the provider's HTTP answer, where that is what failed."""

    def __init__(
        self,
        detail: str,
        *,
        retry_after_seconds: float | None = None,
        is_outage: bool = False,
        refused_fields: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(detail, retry_after_seconds=retry_after_seconds)
        self.is_outage = is_outage
        """True where the provider could not be reached or failed as a whole: a connection that was
        refused, reset or not made in time, or a status of 5xx."""
        self.refused_fields = refused_fields
        """Optional fields of the request that the refusal names."""


class ProviderUnavailable(ProviderError):
    """The AI provider cannot be reached or cannot serve now.

    Raised for refused and reset connections, 408, 409, 5xx and a crashed embedded engine.
    """

    kind = ErrorKind.UNAVAILABLE
    code = "provider-unavailable"
    retryable = True


class ProviderRateLimited(ProviderError):
    """The AI provider limits this server's requests."""

    kind = ErrorKind.UNAVAILABLE
    code = "provider-rate-limited"
    retryable = True


class ProviderTimeout(ProviderError):
    """The AI provider did not answer in time."""

    kind = ErrorKind.TIMEOUT
    code = "provider-timeout"
    retryable = True


class ProviderUnauthorized(ProviderError):
    """The AI provider refused this server's credentials.

    Raised for 401, 403, and a 429 that says that the account has no credit.
    """

    kind = ErrorKind.UPSTREAM
    code = "provider-unauthorized"


class ProviderRejected(ProviderError):
    """The AI provider refused the request.

    Raised for 400, 404, 413 and 422: an unknown model or voice, or a prompt that is too long.
    """

    kind = ErrorKind.UPSTREAM
    code = "provider-rejected"


class UpstreamIncomplete(ProviderError):
    """The AI provider's answer was incomplete or could not be parsed.

    Raised for a stream without a finish reason, HTML with status 200, an empty body or a broken
    chunk.
    """

    kind = ErrorKind.UPSTREAM
    code = "upstream-incomplete"
    retryable = True


class ToolCallsUnsupported(ProviderError):
    """The model asked for tool calls, and the agent has no tools.

    An answer that ends with tool calls and has no text. The same request would end the same way.
    """

    kind = ErrorKind.UPSTREAM
    code = "tool-calls-unsupported"


class FinishReason(StrEnum):
    """Why the model stopped generating."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    """A filter ended the answer, or the model refused: then the text is the refusal."""
    TOOL_CALLS = "tool_calls"


@value_object(frozen=True, slots=True)
class ToolDefinition:
    """What a model sees of a tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of the arguments, an object."""
    is_strict: bool = False
    """True where the provider must keep to the schema."""


ONE_FUNCTION = "function:"
"""Before the name of the one tool that must be called."""


@value_object(frozen=True, slots=True)
class ChatOptions:
    """What one request asks of the model beside its agent; `None` is the provider's default."""

    top_p: float | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    reasoning_effort: str | None = None
    tool_choice: str | None = None
    """`required`, or the name of the one tool to call behind `ONE_FUNCTION`."""
    parallel_tool_calls: bool | None = None


@value_object(frozen=True, slots=True)
class ResponseFormat:
    """The answer is one JSON value that a schema allows; whoever asks validates it."""

    name: str
    schema: Mapping[str, Any]
    """JSON Schema (2020-12), an object at its top."""
    is_strict: bool = False
    """True where the schema has the shape in which a provider can enforce it."""

    @property
    def instruction(self) -> str:
        """The schema in words for the system prompt, where a provider may not obey it."""
        return (
            "Answer with one JSON value and nothing else: no other words, no Markdown. It must "
            f"match this JSON Schema:\n{orjson.dumps(self.schema).decode()}"
        )


_WITH_MORE_THAN_TEXT = frozenset((PromptResult, PromptContent))


@value_object(frozen=True, slots=True)
class ChatRequest:
    """A prompt with its generation parameters. `None` means the provider's default."""

    messages: Sequence[PromptLine]
    """The system prompt first, then the messages, oldest first."""
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    tools: Sequence[ToolDefinition] = ()
    """The tools of the agent, in the order in which the model is told of them."""
    may_call_tools: bool = True
    """False where the model must answer without calling one of `tools`."""
    response_format: ResponseFormat | None = None
    """`None` for an answer in plain text."""
    options: ChatOptions | None = None

    @property
    def has_text_only(self) -> bool:
        """True if no line of the prompt has calls of tools, their results, or images."""
        return _WITH_MORE_THAN_TEXT.isdisjoint(map(type, self.messages))  # the fastest way


@value_object(frozen=True, slots=True)
class TextDelta:
    """The next part of the answer's text; never empty."""

    text: str


@value_object(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of the model's reasoning; never empty. It is not part of the answer."""

    text: str


@value_object(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call. The first piece of a call has its id and its name."""

    index: int
    """Which call of the answer, from 0 on."""
    call_id: str
    name: str
    arguments: str
    """The next piece of the arguments' JSON; may be empty."""


@value_object(frozen=True, slots=True)
class ChatFinished:
    """The end of the answer. Token counts are `None` where the provider reports none."""

    finish_reason: FinishReason
    model: str
    """The model that answered, as the provider names it."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """The part of `prompt_tokens` that was read from the provider's prompt cache."""
    completion_tokens: int | None = None


ChatDelta = TextDelta | ReasoningDelta | ToolCallDelta
ChatItem = ChatDelta | ChatFinished


class ChatModel(Protocol):
    """Port of a chat model: generates the answer to a conversation."""

    @property
    def context_tokens(self) -> int:
        """Size of the context window in tokens, prompt and answer together."""
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:
        """Answer `request`: deltas of text, reasoning and calls, then exactly one `ChatFinished`.

        `ChatFinished` is yielded only if the provider sent a finish reason. Safe to cancel or to
        close early: the request at the provider is cancelled, and nothing is left running.
        Raises `ProviderError`. Makes one attempt; the caller retries.
        """
        ...


class AudioFormat(StrEnum):
    """An audio container format; the value is its usual file name extension."""

    WAV = "wav"
    MP3 = "mp3"
    MP4 = "mp4"
    WEBM = "webm"
    OGG = "ogg"
    FLAC = "flac"

    @property
    def media_type(self) -> str:
        """The media type, such as `audio/mpeg`."""
        return "audio/mpeg" if self is AudioFormat.MP3 else f"audio/{self.value}"


@value_object(frozen=True, slots=True)
class Recording:
    """A checked upload: `data` is valid audio in `format` and contains speech."""

    data: bytes
    format: AudioFormat
    duration_seconds: float
    is_urgent: bool = True
    """False where its speaker may go on, so that others come first."""


@value_object(frozen=True, slots=True)
class Transcript:
    """Transcribed speech. `language` is an ISO 639-1 code, `None` where the provider names none."""

    text: str
    language: str | None = None
    segments: Sequence[TimedText] = ()
    words: Sequence[TimedText] = ()


OnWords = Callable[[str], None]


class Transcriber(Protocol):
    """Port of transcription: converts speech to text."""

    @property
    def time_units(self) -> frozenset[TimeUnit]:
        """What `transcribe` can tell the times of."""
        ...

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        prompt: str | None = None,
        times: frozenset[TimeUnit] = NO_TIMES,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Transcribe `recording`; `language` (ISO 639-1) is a hint.

        `prompt` is a text in whose style and spelling the transcript goes on. `times`, which are
        of `time_units`, are in the transcript's `segments` and `words`.

        Where the provider streams, `on_words` is called with each partial transcript; the
        transcript that is returned is authoritative. Its text is empty where no words were
        recognized. Safe to cancel. Raises `ProviderError`. Makes one attempt.
        """
        ...


@value_object(frozen=True, slots=True)
class SampleFormat:
    """Little-endian samples, the channels of each moment side by side."""

    rate_hz: int
    channels: int
    bits: int
    """Of one sample: 8 (unsigned), 16, 24 or 32; of floats 32 or 64."""
    is_float: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of all channels at one moment."""
        return self.channels * self.bits // 8

    @property
    def is_usual(self) -> bool:
        """True for what can be converted."""
        widths = (32, 64) if self.is_float else (8, 16, 24, 32)
        return (
            4_000 <= self.rate_hz <= 192_000  # noqa: PLR2004
            and 1 <= self.channels <= 8  # noqa: PLR2004
            and self.bits in widths
        )


STANDARD_VOICES = frozenset(("alloy", "echo", "fable", "nova", "onyx", "shimmer"))
"""The names of voices that every `Speaker` takes."""


class Speaker(Protocol):
    """Port of speech synthesis: converts text to speech."""

    @property
    def sample_rate_hz(self) -> int:
        """Sample rate of the PCM that `speak` yields, in Hz."""
        ...

    @property
    def max_characters(self) -> int:
        """The longest text, in characters, that one call of `speak` accepts."""
        ...

    @property
    def voices(self) -> frozenset[str] | None:
        """The names of all voices, the standard ones included; `None` where nobody knows them."""
        ...

    @property
    def has_speeds(self) -> bool:
        """True if `speak` takes another speed than 1."""
        ...

    def speak(
        self, text: str, *, voice: str, speed: float = 1, is_urgent: bool = True
    ) -> AsyncGenerator[bytes]:
        """Synthesize `text`; yield signed 16-bit little-endian mono PCM, in whole samples.

        `is_urgent` is false behind the first text of an answer: who waits for that comes first.
        `voice` is one of the six standard names (`alloy` and so on) or a voice of the provider.
        `speed` is 0.25 to 4, where `has_speeds`.
        Safe to cancel or to close early. Yields at least one sample unless it raises. Raises
        `ProviderError`. Makes one attempt.
        """
        ...
