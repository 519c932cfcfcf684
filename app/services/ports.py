"""What the platform asks of an AI provider, in its own words.

`openai_service` and `local_service` fulfil these; tests use `tests/fakes.py`. A provider's
own types, exceptions and words never pass this line.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple, Protocol

from app.core.errors import AppError, ErrorKind
from app.core.values import value


class ProviderError(AppError):
    """The AI provider failed.

    Base of every failure of a provider. `retryable` says whether the same request may
    succeed at once or soon; `retry_after_seconds` is what the provider asked for, if anything.
    """

    kind = ErrorKind.UPSTREAM
    code = "provider-failed"
    retryable: ClassVar[bool] = False


class ProviderUnavailable(ProviderError):
    """The AI provider cannot be reached or cannot serve now.

    Refused and reset connections, 408, 409, 5xx, a crashed embedded engine.
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

    401 and 403, and a 429 that says the account has no credit.
    """

    kind = ErrorKind.UPSTREAM
    code = "provider-unauthorized"


class ProviderRejected(ProviderError):
    """The AI provider refused the request.

    400, 404, 413, 422: an unknown model, a prompt that is too long, an unknown voice.
    """

    kind = ErrorKind.UPSTREAM
    code = "provider-rejected"


class UpstreamIncomplete(ProviderError):
    """The AI provider's answer broke off or made no sense.

    A stream without a finish reason, HTML with status 200, an empty body, a broken chunk.
    """

    kind = ErrorKind.UPSTREAM
    code = "upstream-incomplete"
    retryable = True


class FinishReason(StrEnum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    TOOL_CALLS = "tool_calls"


class PromptLine(Protocol):
    """One line of the conversation as the model sees it."""

    @property
    def role(self) -> str:
        """One of `Role`."""
        ...

    @property
    def content(self) -> str:
        """The words."""
        ...


class PromptMessage(NamedTuple):
    """A `PromptLine` that is nothing else."""

    role: str
    content: str


@value(frozen=True, slots=True)
class ChatRequest:
    """A prompt and how to answer it. `None` means the provider's default."""

    messages: Sequence[PromptLine]
    """Oldest first, the system prompt at its head."""
    model: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None


@value(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer; never empty."""

    text: str


@value(frozen=True, slots=True)
class ChatFinished:
    """The end of the answer. Token counts are `None` where the provider gives none."""

    finish_reason: FinishReason
    model: str
    """The model that answered, as the provider names it."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """Those of `prompt_tokens` that came from the provider's prompt cache."""
    completion_tokens: int | None = None


class ChatModel(Protocol):
    """Answers a conversation."""

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and answer may have together, by default."""
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        """Answer `request`: text deltas, then exactly one `ChatFinished`.

        No `ChatFinished` comes without the provider's own finish reason. Safe to cancel or
        to close early: the provider is told and nothing is left running. Raises `ProviderError`;
        makes one attempt, for retries are the caller's.
        """
        ...


class AudioFormat(StrEnum):
    """A container of sound; the value is its usual file name extension."""

    WAV = "wav"
    MP3 = "mp3"
    MP4 = "mp4"
    WEBM = "webm"
    OGG = "ogg"
    FLAC = "flac"


@value(frozen=True, slots=True)
class Recording:
    """An upload that passed the guard: `data` really is sound in `format`, with speech in it."""

    data: bytes
    format: AudioFormat
    duration_seconds: float


@value(frozen=True, slots=True)
class Transcript:
    """What was said. `language` is an ISO 639-1 code, `None` where the provider names none."""

    text: str
    language: str | None = None


OnWords = Callable[[str], None]


class Transcriber(Protocol):
    """Turns speech into text."""

    async def transcribe(
        self,
        recording: Recording,
        *,
        language: str | None = None,
        on_words: OnWords | None = None,
    ) -> Transcript:
        """Write down `recording`; `language` (ISO 639-1) is a hint.

        `on_words` is called with each piece of text as it is understood, where the provider
        streams; the transcript that is returned is what counts.
        Safe to cancel. Raises `ProviderError`; makes one attempt. Empty text means that
        no words were heard.
        """
        ...


class Speaker(Protocol):
    """Turns text into speech."""

    @property
    def sample_rate_hz(self) -> int:
        """Samples per second of what `speak` yields."""
        ...

    @property
    def max_characters(self) -> int:
        """The longest text that one call of `speak` takes."""
        ...

    def speak(self, text: str, *, voice: str) -> AsyncGenerator[bytes]:
        """Read `text` aloud: signed 16-bit little-endian mono PCM, in whole samples.

        `voice` is one of the six names of the seed or one that the provider knows. Safe to
        cancel or to close early. Raises `ProviderError`; makes one attempt. Yields at least
        one sample unless it raises.
        """
        ...
