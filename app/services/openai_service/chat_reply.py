"""The answer to `POST /chat/completions`: its bytes become deltas and a finish."""

from enum import Enum, auto
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

from app.core.storable_text import storable_text
from app.services.openai_service.reasoning import ReasoningSplitter
from app.services.openai_service.tool_calls import ToolCallReader
from app.services.ports import (
    ChatDelta,
    ChatFinished,
    FinishReason,
    ProviderError,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UpstreamIncomplete,
)
from app.services.provider_http.failures import SettingNames, failure_of_error
from app.services.provider_http.parse import SurrogateJoiner, parse_json
from app.services.provider_http.sse import EventReader

_MAX_TEXT_CHARACTERS = 8 << 20
_MAX_BODY_BYTES = 16 * _MAX_TEXT_CHARACTERS
"""A chunk of one word has some 250 bytes around it."""
_MAX_TOKENS = (1 << 31) - 1
_MAX_NAME_CHARACTERS = 200
_BLANK = b" \t\r\n\xef\xbb\xbf"
_BRACE = ord("{")

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "complete": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "max_output_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "safety": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
}
"""OpenAI's, and what compatible servers pass on of other APIs; any other is a failure."""
_NO_REASON = frozenset({"", "null", "none"})


class _Shape(Enum):
    """What the first bytes look like; labels are often wrong."""

    UNKNOWN = auto()
    EVENTS = auto()
    JSON = auto()


class ReplyReader:
    """Reads the bytes of one answer; knows nothing of sockets.

    `is_over` says that nothing more is wanted; then `finish` returns the end of a complete
    answer and raises for every other. Deltas before a failure are still returned by `feed`.
    """

    __slots__ = (
        "_body_bytes",
        "_call_reader",
        "_calls",
        "_characters",
        "_content_joiner",
        "_events",
        "_failure",
        "_has_tool_calls",
        "_head",
        "_is_refusal",
        "_model",
        "_model_is_named",
        "_names",
        "_pieces",
        "_reason_is_stale",
        "_reasoning_joiner",
        "_shape",
        "_splitter",
        "_usage",
        "finish_reason",
        "has_begun",
        "is_over",
        "may_continue",
    )

    def __init__(self, model: str, names: SettingNames) -> None:
        self.finish_reason: FinishReason | None = None
        self.is_over = False
        self.has_begun = False
        """True once a part of the answer, or of its reasoning, has come."""
        self.may_continue = False
        """True where the finish reason came together with text, or before some: then it may be in
        every chunk, and only the end of the stream is the end."""
        self._model = model
        self._names = names
        self._model_is_named = False
        self._usage: dict[str, Any] | None = None
        self._failure: ProviderError | None = None
        self._shape = _Shape.UNKNOWN
        self._head = bytearray()
        self._events = EventReader()
        self._body_bytes = 0
        self._characters = 0
        self._reason_is_stale = False
        self._is_refusal = False
        self._has_tool_calls = False
        self._content_joiner = SurrogateJoiner()
        self._reasoning_joiner = SurrogateJoiner()
        self._splitter = ReasoningSplitter()
        self._pieces: list[tuple[bool, str]] = []
        self._call_reader = ToolCallReader()
        self._calls: list[ToolCallDelta] = []

    def feed(self, piece: bytes) -> list[ChatDelta]:
        """Take the next bytes, `b""` at the end, and return the deltas in them."""
        self._body_bytes += len(piece)
        try:
            self._feed(piece)
        except ProviderError as error:
            self._fail(error)
        if not piece:
            self.is_over = True
        if self.is_over:
            self._flush()
        return self._take_deltas()

    def finish(self) -> ChatFinished:
        """Return the end; raises where there is no finish reason."""
        if self._failure:
            raise self._failure
        reason = self.finish_reason
        if reason is None:
            raise UpstreamIncomplete(
                "The AI provider's answer ended without a finish reason."
                if self._body_bytes
                else "The AI provider's answer is empty."
            )
        if reason is FinishReason.STOP and self._is_refusal:
            reason = FinishReason.CONTENT_FILTER
        if reason is FinishReason.STOP and self._has_tool_calls:
            reason = FinishReason.TOOL_CALLS
        usage = self._usage or {}
        return ChatFinished(
            finish_reason=reason,
            model=self._model,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            cached_tokens=_cached_tokens(usage),
            completion_tokens=_count(usage.get("completion_tokens")),
        )

    def _feed(self, piece: bytes) -> None:
        is_end = not piece
        if self._shape is _Shape.UNKNOWN:
            self._head += piece
            if not self._look_at_head() and not is_end:
                self._check_limits()
                return
            piece, self._head = bytes(self._head), bytearray()
        if self._shape is _Shape.JSON:
            self._feed_json(piece)
            return
        events = self._events.feed(piece)
        if is_end:
            events += self._events.end()
        for event in events:
            if event == b"[DONE]":
                self.is_over = True
                return
            # Some servers keep connections alive with blank events.
            if event and (event[0] == _BRACE or not event.isspace()):
                self._read(parse_json(event))
        self._check_limits()

    def _look_at_head(self) -> bool:
        """Say whether the first bytes tell a stream from JSON. Raises for a web page."""
        head = self._head.lstrip(_BLANK)
        if not head:
            return False
        if head.startswith(b"<"):
            raise UpstreamIncomplete(
                f"The AI provider answered with a web page; check {self._names.base_url}."
            )
        self._shape = _Shape.JSON if head.startswith((b"{", b"[")) else _Shape.EVENTS
        return True

    def _feed_json(self, piece: bytes) -> None:
        self._head += piece
        if len(self._head) > _MAX_TEXT_CHARACTERS:
            raise _too_long()
        if not piece:
            self._read(parse_json(bytes(self._head).strip(_BLANK)))

    def _read(self, chunk: Any) -> None:  # noqa: ANN401  # JSON
        """Take one `chat.completion` or chunk of it; frames without choices are skipped."""
        fields: dict[str, Any] = chunk
        if type(chunk) is not dict:
            if isinstance(chunk, list):
                raise _unknown_shape()
            return
        if "error" in fields and (error := fields["error"]):
            raise failure_of_error(error, names=self._names)
        if not self._model_is_named and isinstance(name := fields.get("model"), str) and name:
            self._model = storable_text(name)[:_MAX_NAME_CHARACTERS]
            self._model_is_named = True
        if "usage" in fields and (usage := fields["usage"]) and isinstance(usage, dict):
            self._usage = cast("dict[str, Any]", usage)
        if choices := fields.get("choices"):
            try:
                self._read_choice(choices[0])
            except (AttributeError, KeyError, TypeError, RecursionError):
                raise _unknown_shape() from None

    def _read_choice(self, choice: dict[str, Any]) -> None:
        characters = self._characters
        if message := choice.get("delta") or choice.get("message"):
            # Nearly all chunks are one plain word.
            if len(message) == 1 and "content" in message and type(message["content"]) is str:
                self._add_text(message["content"])
            else:
                self._read_message(message)
        reason = choice.get("finish_reason")
        if reason is None and self.finish_reason is None:
            return
        has_more = self._characters > characters
        if has_more and self.finish_reason is not None:
            self.may_continue = self._reason_is_stale = True
        if reason is None:
            return
        reason = str(reason).lower()
        if reason in _NO_REASON:
            return
        known = _FINISH_REASONS.get(reason)
        if known is None:
            self.finish_reason = None
            raise UpstreamIncomplete("The AI provider ended its answer with an error.")
        if self.finish_reason is None or self._reason_is_stale:
            self.finish_reason = known
            self._reason_is_stale = False
        self.may_continue = self.may_continue or has_more

    def _read_message(self, message: dict[str, Any]) -> None:
        for name in ("reasoning_content", "reasoning"):
            if (reasoning := message.get(name)) and isinstance(reasoning, str):
                self._add_reasoning(reasoning)
                break
        self._read_content(message.get("content"))
        if refusal := message.get("refusal"):
            self._is_refusal = True
            self._read_content(refusal)
        if calls := message.get("tool_calls") or message.get("function_call"):
            self._has_tool_calls = True
            self._calls += self._call_reader.read(calls)
            self._characters += sum(len(call.arguments) for call in self._calls)

    def _read_content(self, content: Any) -> None:  # noqa: ANN401  # JSON
        """Take text, or parts of it."""
        if not content:
            return
        if isinstance(content, str):
            self._add_text(content)
        elif isinstance(content, list):
            for part in cast("list[Any]", content):
                self._read_content(part)
        elif isinstance(content, dict):
            part = cast("dict[str, Any]", content)
            if part.get("type") in {"thinking", "reasoning"}:
                self._read_thought(part.get("thinking") or part.get("text"))
            else:
                self._read_content(part.get("text"))
        else:
            raise _unknown_shape()

    def _read_thought(self, thought: Any) -> None:  # noqa: ANN401  # JSON
        if isinstance(thought, str):
            self._add_reasoning(thought)
        elif isinstance(thought, list):
            for part in cast("list[Any]", thought):
                self._read_thought(part.get("text"))

    def _add_text(self, text: str) -> None:
        self._characters += len(text)
        is_plain = self._splitter.is_in_answer and self._content_joiner.is_empty
        if is_plain and text and text.isascii() and "\x00" not in text:
            self._pieces.append((False, text))
        elif whole := self._content_joiner.feed(text):
            self._pieces += self._splitter.feed(whole)

    def _add_reasoning(self, text: str) -> None:
        self._characters += len(text)
        if whole := self._reasoning_joiner.feed(text):
            self._pieces.append((True, whole))

    def _flush(self) -> None:
        if half := self._reasoning_joiner.end():
            self._pieces.append((True, half))
        if half := self._content_joiner.end():
            self._pieces += self._splitter.feed(half)
        self._pieces += self._splitter.end()

    def _take_deltas(self) -> list[ChatDelta]:
        """Return what was read, neighbours of one kind joined."""
        pieces = self._pieces
        if self._calls:
            calls, self._calls = self._calls, []
            return [*self._take_deltas(), *calls]
        if not pieces:
            return []
        self.has_begun = True
        self._pieces = []
        if len(pieces) == 1:
            [(is_reasoning, text)] = pieces
            return [ReasoningDelta(text) if is_reasoning else TextDelta(text)]
        return [
            (ReasoningDelta if is_reasoning else TextDelta)(
                "".join([text for _, text in neighbours])
            )
            for is_reasoning, neighbours in groupby(pieces, key=itemgetter(0))
        ]

    def _fail(self, error: ProviderError) -> None:
        """End here; what comes behind the end of a whole answer does not matter."""
        self.is_over = True
        if self.finish_reason is None or self.may_continue:
            self._failure = error

    def _check_limits(self) -> None:
        if (
            self._events.overflowed
            or self._characters > _MAX_TEXT_CHARACTERS
            or self._body_bytes > _MAX_BODY_BYTES
        ):
            raise _too_long()


def _unknown_shape() -> UpstreamIncomplete:
    return UpstreamIncomplete("The AI provider sent a chunk of no known shape.")


def _too_long() -> UpstreamIncomplete:
    return UpstreamIncomplete("The AI provider's answer is longer than any can be.")


def _cached_tokens(usage: dict[str, Any]) -> int | None:
    details = usage.get("prompt_tokens_details")
    if not isinstance(details, dict):
        return None
    return _count(cast("dict[str, object]", details).get("cached_tokens"))


def _count(value: object) -> int | None:
    """Take a count of tokens that a database can store, or nothing."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS:
        return value
    return None
