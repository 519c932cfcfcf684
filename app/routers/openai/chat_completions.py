"""`POST /v1/chat/completions`, as a plain ASGI endpoint: an unstored turn in OpenAI's words."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import UUID

import anyio
import orjson
from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.core.errors import AppError
from app.http.disconnection import unless_disconnected
from app.http.endpoint_route import EndpointRoute
from app.http.frame_stream import FrameStream
from app.http.idempotency import REPLAYED, KeyHeader, request_key
from app.http.openai_errors import InvalidParameter, error_body, mark_final
from app.http.openapi import BINARY_SCHEMA
from app.http.permissions import endpoint_policy
from app.http.problems import problem_response
from app.http.request_body import (
    JSON_TYPE,
    parse_json_body,
    read_body,
    require_announced_length,
    require_media_type,
)
from app.routers.openai.chat_frames import (
    PING,
    ChatCompletionChunks,
    CompletionHead,
    completion,
)
from app.routers.openai.chat_request import agent_of, turn_request
from app.schemas.openai_chat import ChatCompletionCreate
from app.services.turns import LiveTurn, TurnEngine, TurnOptions, follow_here
from app.services.turns.errors import AnswerNotKept, InternalError, is_retryable
from app.services.turns.events import TERMINAL, OutputTextDelta, ReasoningText, ToolCallArguments

METHOD, PATH = "POST", "/v1/chat/completions"
BODY_BYTES = 16 << 20
"""A whole conversation comes with each request."""
_POLICY = endpoint_policy((METHOD,), PATH)
_SILENCE_SECONDS = 10.0
_NO_SESSION = UUID(int=0)
_SHOWN = (OutputTextDelta, ReasoningText, ToolCallArguments)


async def create_chat_completion(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request; the ASGI application of the endpoint."""
    try:
        response = await _respond(scope, receive)
        await response(scope, receive, send)
    except AppError as error:  # a stream raises it only before its first byte
        response = problem_response(error, scope["state"]["request_id"])
        await response(scope, receive, send)


async def _respond(scope: Scope, receive: Receive) -> Response:
    state: dict[str, Any] = scope["state"]
    turns: TurnEngine = state["turns"]
    caller = state["caller"]
    _POLICY.check(caller)
    headers: dict[bytes, bytes] = dict(scope["headers"])
    require_media_type(headers.get(b"content-type", b"").decode("latin-1"), JSON_TYPE)
    require_announced_length(headers.get(b"content-length", b"").decode("latin-1"), BODY_BYTES)
    if b"x-session-id" in headers:
        raise InvalidParameter(
            "X-Session-Id", "This endpoint stores no conversation.", "unsupported_parameter"
        )
    content = await read_body(scope, receive, BODY_BYTES)
    body = parse_json_body(content, ChatCompletionCreate)
    options = TurnOptions(
        key=request_key(caller, headers.get(b"idempotency-key"), PATH, content),
        keeps_content=False,
        agent=agent_of(body.model),
        request=turn_request(body),
    )
    live = await turns.start(caller, _NO_SESSION, "", None, options)
    if not live.settled.is_set() and not turns.holds(live):
        raise AnswerNotKept("Another server answers this request, and no answer is stored.")
    return await _Answer(live, body, turns).response(receive)


class _Answer:
    """One turn's answer, as one object or as a stream."""

    def __init__(self, live: LiveTurn, body: ChatCompletionCreate, turns: TurnEngine) -> None:
        self._live = live
        self._turns = turns
        self._is_stream = bool(body.stream)
        self._shows_calls = bool(body.tools)
        record = live.record
        self._head = CompletionHead(
            f"chatcmpl-{record.id.hex}", int(record.created_at.timestamp()), body.model
        )
        self._chunks = ChatCompletionChunks(
            self._head,
            shows_usage=bool(body.stream_options and body.stream_options.include_usage),
            shows_calls=self._shows_calls,
        )
        live.client_count += 1

    async def response(self, receive: Receive) -> Response:
        """Return the answer; as a stream it is sent as the turn runs. Raises the turn's error."""
        headers = {REPLAYED: "true"} if self._live.is_replayed else {}
        if self._is_stream:
            return FrameStream(self._frames(), self._encode_error, self._leave, headers)
        try:
            await unless_disconnected(receive, self._leave, self._live.settled.wait)
        except anyio.get_cancelled_exc_class():
            await self._leave()
            raise
        self._raise_error()
        progress, outcome = self._live.progress, self._live.outcome
        answer = completion(
            self._head,
            outcome.content if outcome else "",
            outcome.parts if outcome else None,
            progress.finish_reason,
            progress.usage,
            shows_calls=self._shows_calls,
        )
        return Response(orjson.dumps(answer), headers=headers, media_type=JSON_TYPE)

    async def _leave(self) -> None:
        """Cancel the turn where nobody waits for it any more: nothing of it could be asked for."""
        self._live.client_count -= 1
        if self._live.client_count <= 0 and not self._live.settled.is_set():
            self._live.scope.cancel()

    async def _frames(self) -> AsyncGenerator[bytes]:
        """Yield the stream; raises the turn's error as long as nothing was yielded."""
        has_begun = False
        async with aclosing(follow_here(self._live, _SILENCE_SECONDS)) as batches:
            async for values in batches:
                is_over = bool(values) and values[-1].type in TERMINAL
                if not has_begun:
                    if values and not is_over and not any(isinstance(v, _SHOWN) for v in values):
                        continue
                    if is_over:
                        self._raise_error()
                    has_begun = True
                    yield self._chunks.begin()
                frames = self._chunks.encode(values) if values else PING
                if frames:
                    yield frames
        if not has_begun:
            self._raise_error()
        error = self._live.outcome.error if self._live.outcome else None
        if error:
            yield self._encode_error(error)
        else:
            progress = self._live.progress
            yield self._chunks.complete(progress.finish_reason, progress.usage)

    def _encode_error(self, error: AppError) -> bytes:
        return self._chunks.fail(error_body(error))

    def _raise_error(self) -> None:
        outcome = self._live.outcome
        if outcome is None:
            raise InternalError("The server failed to answer; its log says why.")
        if outcome.error:
            if not is_retryable(outcome.error):
                mark_final(outcome.error)
            raise outcome.error.with_traceback(None)


class _ChatCompletionRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = create_chat_completion


router = APIRouter(tags=["openai"], route_class=_ChatCompletionRoute)


@router.post(
    PATH,
    name="create_chat_completion",
    responses={
        200: {
            "content": {"text/event-stream": {"schema": BINARY_SCHEMA}},
            "description": "The answer, or with `stream` its chunks, as OpenAI's API has them",
        }
    },
)
async def describe_chat_completion(
    body: ChatCompletionCreate, key: KeyHeader = None
) -> dict[str, Any]:
    """Continue a conversation, in the words of OpenAI's API; nothing of it is stored.

    `model` is an agent, whose system prompt comes first. The turn is cancelled when the client
    leaves. Calls of the request's `tools` end the answer with `finish_reason: tool_calls`.
    """
    raise AssertionError((body, key), "`create_chat_completion` serves it")
