"""Chat: `POST /chat/completions`, streamed."""

from base64 import b64encode
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import orjson

from app.services.openai_service.chat_reply import ReplyReader
from app.services.ports import (
    ChatItem,
    ChatRequest,
    PromptAnswer,
    PromptContent,
    PromptImage,
    PromptLine,
    PromptResult,
    ProviderError,
    ToolDefinition,
)
from app.services.provider_http.client import ProviderClient, ProviderResponse
from app.services.provider_http.parse import clean

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

    def without(self, refused: frozenset[str], *, has_limit: bool) -> "_Dialect":
        """Return the dialect to try after a refusal that names fields."""
        if self.takes_stream_options and "stream_options" in refused:
            return self._replace(takes_stream_options=False)
        if has_limit and self.limit_field in refused:
            return self._replace(limit_field=_OTHER_LIMIT_FIELD[self.limit_field])
        return self


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
        dialect = self._dialects.get(model, self._usual)
        tried: set[_Dialect] = set()
        while True:
            tried.add(dialect)
            body = _body(request, model, dialect)
            try:
                answer = await self._client.post("chat/completions", body, setting=_SETTING)
            except ProviderError as error:
                has_limit = request.max_output_tokens is not None
                dialect = dialect.without(error.refused_fields, has_limit=has_limit)
                if dialect in tried:
                    raise
            else:
                self._remember(model, dialect)
                return answer

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
    if dialect.takes_stream_options:
        body["stream_options"] = {"include_usage": True}
    if request.temperature is not None:
        body["temperature"] = request.temperature
    if request.max_output_tokens is not None:
        body[dialect.limit_field] = request.max_output_tokens
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # a lone surrogate
        body["messages"] = [_message(line) for line in request.messages]
        return orjson.dumps(body)


def _message(line: PromptLine) -> dict[str, Any]:
    """Return a line of the prompt; what cannot be written as JSON is replaced."""
    message: dict[str, Any] = {"role": line.role, "content": clean(line.content)}
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
        return {"type": "text", "text": clean(piece)}
    url = f"data:{piece.media_type};base64,{b64encode(piece.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _function(tool: ToolDefinition) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    return {"type": "function", "function": function}
