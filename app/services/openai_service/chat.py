"""Chat: `POST /chat/completions`, streamed."""

from collections.abc import AsyncGenerator
from typing import Any, cast

import orjson

from app.services.openai_service.client import Answer, OpenAIClient
from app.services.openai_service.failures import failure_of_error
from app.services.openai_service.parse import clean, parse_json
from app.services.openai_service.sse import EventReader
from app.services.ports import (
    ChatFinished,
    ChatRequest,
    FinishReason,
    PromptLine,
    ProviderError,
    TextDelta,
    UpstreamIncomplete,
)

_SETTING = "CHAT_MODEL"
_MAX_TEXT_CHARACTERS = 8 << 20
_MAX_BODY_BYTES = 16 * _MAX_TEXT_CHARACTERS
"""A chunk of one word has some 250 bytes around it."""
_MAX_TOKENS = (1 << 31) - 1
_MAX_NAME_CHARACTERS = 200
_END_WAIT_SECONDS = 0.25

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}


class OpenAIChatModel:
    """Fulfils `ChatModel`. `model` answers where the request names none.

    The finish of an answer waits `usage_wait_seconds` for its token counts, which come last.
    """

    def __init__(
        self,
        client: OpenAIClient,
        model: str,
        *,
        context_tokens: int = 128_000,
        usage_wait_seconds: float = 2,
    ) -> None:
        self._client = client
        self._model = model
        self._usage_wait_seconds = usage_wait_seconds
        self._context_tokens = context_tokens
        self._limit_field = "max_completion_tokens" if client.is_openai else "max_tokens"

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self._context_tokens

    async def stream(self, request: ChatRequest) -> AsyncGenerator[TextDelta | ChatFinished]:
        """Fulfil `ChatModel.stream`. A delta is all the text of one read, often several chunks."""
        model = request.model or self._model
        reply = ReplyReader(model)
        body = self._body(request, model)
        with await self._client.post("chat/completions", body, setting=_SETTING) as answer:
            if answer.media_type == "application/json":
                text = reply.feed_completion(await answer.read_all(_MAX_TEXT_CHARACTERS))
                if text:
                    yield TextDelta(text)
            elif answer.media_type == "text/html":
                raise UpstreamIncomplete(
                    "The AI provider answered with a web page; check OPENAI_BASE_URL."
                )
            while not reply.is_over:
                text = reply.feed(await self._next_piece(answer, reply))
                if text:
                    yield TextDelta(text)
            yield reply.finish()
            answer.end_within(_END_WAIT_SECONDS)
            await answer.drain()

    async def _next_piece(self, answer: Answer, reply: "ReplyReader") -> bytes:
        """Wait for more; what fails after the finish reason costs the token counts only."""
        if reply.finish_reason is None:
            return await answer.read()
        answer.end_within(self._usage_wait_seconds)
        try:
            return await answer.read()
        except ProviderError:
            return b""

    def _body(self, request: ChatRequest, model: str) -> bytes:
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": line.role, "content": line.content} for line in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_output_tokens is not None:
            body[self._limit_field] = request.max_output_tokens
        try:
            return orjson.dumps(body)
        except orjson.JSONEncodeError:  # a lone surrogate
            body["messages"] = [_clean_message(line) for line in request.messages]
            return orjson.dumps(body)


class ReplyReader:
    """Reads the bytes of one answer; knows nothing of sockets.

    `is_over` says that nothing more is wanted; then `finish` returns the end of a complete
    answer and raises for every other. Text before a failure is still returned by `feed`.
    """

    __slots__ = (
        "_body_bytes",
        "_events",
        "_failure",
        "_model",
        "_model_is_named",
        "_text_characters",
        "_usage",
        "finish_reason",
        "is_over",
    )

    def __init__(self, model: str) -> None:
        self.finish_reason: FinishReason | None = None
        self.is_over = False
        self._model = model
        self._model_is_named = False
        self._usage: dict[str, Any] | None = None
        self._failure: ProviderError | None = None
        self._events = EventReader()
        self._body_bytes = 0
        self._text_characters = 0

    def feed(self, piece: bytes) -> str:
        """Take the next bytes, `b""` at the end, and return the text in them."""
        self._body_bytes += len(piece)
        events = self._events.feed(piece) if piece else self._events.end()
        texts: list[str] = []
        try:
            for event in events:
                if event == b"[DONE]":
                    self.is_over = True
                    break
                if text := self._read(parse_json(event), "delta"):
                    texts.append(text)
                if self._usage is not None and self.finish_reason is not None:
                    self.is_over = True
                    break
            else:
                self._check_limits()
        except ProviderError as error:
            self._failure = error
            self.is_over = True
        if not piece:
            self.is_over = True
        return "".join(texts)

    def feed_completion(self, body: bytes) -> str:
        """Take the whole answer of a server that does not stream, and return its text."""
        self.is_over = True
        self._body_bytes = len(body)
        try:
            return self._read(parse_json(body), "message")
        except ProviderError as error:
            self._failure = error
            return ""

    def finish(self) -> ChatFinished:
        """Return the end; raises where there is no finish reason."""
        if self.finish_reason is None:
            raise self._failure or UpstreamIncomplete(
                "The AI provider's answer ended without a finish reason."
                if self._body_bytes
                else "The AI provider's answer is empty."
            )
        usage = self._usage or {}
        return ChatFinished(
            finish_reason=self.finish_reason,
            model=self._model,
            prompt_tokens=_count(usage.get("prompt_tokens")),
            cached_tokens=_cached_tokens(usage),
            completion_tokens=_count(usage.get("completion_tokens")),
        )

    def _read(self, chunk: Any, part: str) -> str:  # noqa: ANN401  # JSON
        """Take one `chat.completion` or chunk of it; its text is in `part` of the first choice."""
        try:
            if error := chunk.get("error"):
                raise failure_of_error(error, setting=_SETTING)
            if not self._model_is_named and (name := chunk.get("model")):
                self._model = clean(name)[:_MAX_NAME_CHARACTERS]
                self._model_is_named = True
            usage: Any = chunk.get("usage")
            if usage and isinstance(usage, dict):
                self._usage = usage
            choices = chunk.get("choices") if usage else chunk["choices"]
            if not choices:
                return ""
            choice = choices[0]
            said = choice.get(part)
            text: Any = (said.get("content") or "") if said else ""
            if reason := choice.get("finish_reason"):
                self.finish_reason = self.finish_reason or _FINISH_REASONS.get(
                    reason, FinishReason.STOP
                )
            self._text_characters += len(text)
            return clean(text)
        except (AttributeError, KeyError, TypeError):
            raise UpstreamIncomplete("The AI provider sent a chunk of no known shape.") from None

    def _check_limits(self) -> None:
        if (
            self._events.overflowed
            or self._text_characters > _MAX_TEXT_CHARACTERS
            or self._body_bytes > _MAX_BODY_BYTES
        ):
            raise UpstreamIncomplete("The AI provider's answer is longer than any can be.")


def _clean_message(line: PromptLine) -> dict[str, str]:
    return {"role": line.role, "content": clean(line.content)}


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
