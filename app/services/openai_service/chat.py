"""Chat: `POST /chat/completions`, streamed."""

from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import orjson

from app.core.storable_text import storable_text
from app.services.openai_service.chat_reply import ReplyReader
from app.services.openai_service.response_format import (
    FormatLevel,
    format_field,
    with_instruction,
)
from app.services.ports import (
    ONE_FUNCTION,
    ChatItem,
    ChatOptions,
    ChatRequest,
    ProviderError,
    ToolDefinition,
)
from app.services.prompt_lines import (
    PromptAnswer,
    PromptContent,
    PromptImage,
    PromptLine,
    PromptResult,
)
from app.services.provider_http.client import ProviderClient, ProviderResponse

_SETTING = "CHAT_MODEL"
_END_WAIT_SECONDS = 0.25
_DIALECTS_LIMIT = 1000
_OTHER_LIMIT_FIELD = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}


class _Dialect(NamedTuple):
    """The optional fields that a model takes."""

    limit_field: str
    takes_stream_options: bool = True
    format_level: FormatLevel = FormatLevel.STRICT
    format_level_with_tools: FormatLevel = FormatLevel.STRICT
    """Some take `response_format` only in requests without tools."""

    def alternatives(self, refused: frozenset[str], request: ChatRequest) -> Iterator["_Dialect"]:
        """Yield the dialects to try after a refusal that names fields, the likeliest first."""
        if self.takes_stream_options and "stream_options" in refused:
            yield self._replace(takes_stream_options=False)
        if request.max_output_tokens is not None and self.limit_field in refused:
            yield self._replace(limit_field=_OTHER_LIMIT_FIELD[self.limit_field])
        if request.response_format and "response_format" in refused:
            lower = self.level_for(request).below(request.response_format)
            if request.tools:
                yield self._replace(format_level_with_tools=lower)
            else:
                yield self._replace(format_level=lower)

    def with_levels_of(self, other: "_Dialect") -> "_Dialect":
        """Return the dialect with what another one knows of `response_format`."""
        return self._replace(
            format_level=other.format_level, format_level_with_tools=other.format_level_with_tools
        )

    def level_for(self, request: ChatRequest) -> FormatLevel:
        """Return how a request may ask for JSON."""
        return self.format_level_with_tools if request.tools else self.format_level


class OpenAIChatModel:
    """Fulfils `ChatModel`. `model` answers where the request names none.

    The finish of an answer waits `usage_wait_seconds` for its token counts, which come last. A
    model that refuses an optional field is asked again without it, and not asked with it any more.
    """

    def __init__(
        self,
        client: ProviderClient,
        model: str,
        *,
        context_tokens: int = 128_000,
        usage_wait_seconds: float = 2,
    ) -> None:
        self._client = client
        self._model = model
        self._usage_wait_seconds = usage_wait_seconds
        self._context_tokens = context_tokens
        self._usual = _Dialect("max_completion_tokens" if client.is_openai else "max_tokens")
        self._dialects: OrderedDict[str, _Dialect] = OrderedDict()
        """Those of models that refused the usual one."""

    @property
    def context_tokens(self) -> int:
        """How many tokens prompt and answer may have together."""
        return self._context_tokens

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatItem]:
        """Fulfil `ChatModel.stream`. A delta is all the text of one read, often several chunks."""
        model = request.model or self._model
        reply = ReplyReader(model, self._client.names(_SETTING))
        with await self._post(request, model) as answer:
            while not reply.is_over:
                for delta in reply.feed(await self._next_piece(answer, reply)):
                    yield delta
            yield reply.finish()
            answer.end_within(_END_WAIT_SECONDS)
            await answer.drain()

    async def _post(self, request: ChatRequest, model: str) -> ProviderResponse:
        dialect = usual = self._dialects.get(model, self._usual)
        is_about_schema = False
        tried: set[_Dialect] = set()
        while True:
            tried.add(dialect)
            body = _body(self._instructed(request, dialect), model, dialect)
            try:
                answer = await self._client.post("chat/completions", body, setting=_SETTING)
            except ProviderError as error:
                is_about_schema |= "schema" in error.refused_fields
                others = dialect.alternatives(error.refused_fields, request)
                untried = next((each for each in others if each not in tried), None)
                if untried is None:
                    raise
                dialect = untried
            else:
                if is_about_schema:  # of one agent, which says nothing about the model
                    dialect = dialect.with_levels_of(usual)
                self._remember(model, dialect)
                return answer

    def _instructed(self, request: ChatRequest, dialect: _Dialect) -> ChatRequest:
        """Put the schema into the prompt where the server may not obey `response_format`."""
        response_format = request.response_format
        if response_format is None:
            return request
        if self._client.is_openai and dialect.level_for(request) >= FormatLevel.JSON_SCHEMA:
            return request
        return replace(request, messages=with_instruction(request.messages, response_format))

    def _remember(self, model: str, dialect: _Dialect) -> None:
        if dialect == self._dialects.get(model, self._usual):
            return
        self._dialects[model] = dialect
        if len(self._dialects) > _DIALECTS_LIMIT:
            self._dialects.popitem(last=False)

    async def _next_piece(self, answer: ProviderResponse, reply: ReplyReader) -> bytes:
        """Wait for more; what fails after the end of the text costs the token counts only."""
        if reply.finish_reason is None:
            return await answer.read(has_begun=reply.has_begun)
        if reply.may_continue:
            answer.end_within(None)
            return await answer.read()
        if not answer.is_ending:
            answer.end_within(self._usage_wait_seconds)
        try:
            return await answer.read()
        except ProviderError:
            return b""


def _body(request: ChatRequest, model: str, dialect: _Dialect) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": line.role, "content": line.content} for line in request.messages],
        "stream": True,
    }
    if request.tools or not request.has_text_only:
        body["messages"] = [_message(line) for line in request.messages]
    if request.tools:
        body["tools"] = [_function(tool) for tool in request.tools]
        if not request.may_call_tools:
            body["tool_choice"] = "none"
    if request.response_format and (level := dialect.level_for(request)):
        body["response_format"] = format_field(request.response_format, level)
    if dialect.takes_stream_options:
        body["stream_options"] = {"include_usage": True}
    if request.options:
        body |= _options(request.options)
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        body[dialect.limit_field] = request.max_output_tokens
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # a lone surrogate
        body["messages"] = [_message(line) for line in request.messages]
        return orjson.dumps(body)


def _options(options: ChatOptions) -> dict[str, Any]:
    """Return the fields of a request for what it asks beside the agent's settings."""
    fields: dict[str, Any] = {
        "top_p": options.top_p,
        "stop": options.stop,
        "seed": options.seed,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "logit_bias": options.logit_bias,
        "reasoning_effort": options.reasoning_effort,
        "parallel_tool_calls": options.parallel_tool_calls,
        "tool_choice": options.tool_choice,
    }
    if options.tool_choice and options.tool_choice.startswith(ONE_FUNCTION):
        name = options.tool_choice.removeprefix(ONE_FUNCTION)
        fields["tool_choice"] = {"type": "function", "function": {"name": name}}
    return {name: value for name, value in fields.items() if value is not None}


def _message(line: PromptLine) -> dict[str, Any]:
    """Return a line of the prompt; what cannot be written as JSON is replaced."""
    message: dict[str, Any] = {"role": line.role, "content": storable_text(line.content)}
    if isinstance(line, PromptContent):
        message["content"] = [_content_part(piece) for piece in line.pieces]
    elif isinstance(line, PromptResult):
        message["tool_call_id"] = line.call_id
    elif isinstance(line, PromptAnswer) and line.calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in line.calls
        ]
    return message


def _content_part(piece: str | PromptImage) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": storable_text(piece)}
    url = f"data:{piece.media_type};base64,{b64encode(piece.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _function(tool: ToolDefinition) -> dict[str, Any]:
    function: dict[str, Any] = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    if tool.is_strict:
        function["strict"] = True
    return {"type": "function", "function": function}
