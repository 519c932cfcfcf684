"""`POST /v1/chat/completions`, as a plain ASGI endpoint: an unstored turn in OpenAI's words."""

from typing import Annotated, Any

from fastapi import APIRouter, Header
from starlette.responses import Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import KeyHeader, sdk_key
from app.http.openapi import DIALECT_STREAM_CONTENT
from app.http.plain_endpoint import METHOD, endpoint, read_request
from app.routers.openai.chat_frames import ChatCompletionChunks, CompletionHead, completion
from app.routers.openai.chat_request import turn_request
from app.routers.openai.chat_sessions import (
    TASK,
    StoredCompletion,
    newest_messages,
    session_name,
)
from app.routers.openai.stored_turn import StoredStart, busy_policy, start_stored
from app.routers.openai.unstored_answer import UnstoredAnswer, start_unstored
from app.schemas.openai_chat import ChatCompletionCreate
from app.services.turns import LiveTurn
from app.services.turns.events import EventValue

PATH = "/v1/chat/completions"
ROUTE = (METHOD, PATH)


SessionHeader = Annotated[
    str | None,
    Header(
        alias="X-Session-Id",
        max_length=200,
        description="A session's id, or any name of 1 to 200 visible characters: the conversation "
        "is stored, and of `messages` only what follows the last answer is added to it.",
    ),
]
TaskHeader = Annotated[
    str | None,
    Header(alias="X-Task", description="Where it is not empty, the session is not used."),
]


class _ChatDialect:
    """Fulfils `Dialect`."""

    def __init__(self, live: LiveTurn, body: ChatCompletionCreate) -> None:
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

    def begin(self) -> bytes:
        return self._chunks.begin()

    def encode(self, values: list[EventValue]) -> bytes:
        return self._chunks.encode(values)

    def complete(self, live: LiveTurn) -> bytes:
        return self._chunks.complete(live.progress.finish_reason, live.progress.usage)

    def fail(self, error: dict[str, Any]) -> bytes:
        return self._chunks.fail(error)

    def whole(self, live: LiveTurn) -> dict[str, Any]:
        progress, outcome = live.progress, live.outcome
        return completion(
            self._head,
            outcome.content if outcome else "",
            outcome.parts if outcome else None,
            progress.finish_reason,
            progress.usage,
            shows_calls=self._shows_calls,
        )


async def _respond(scope: Scope, receive: Receive) -> Response:
    given = await read_request(scope, receive, PATH, ChatCompletionCreate)
    body = given.body
    name = session_name(given.headers, body)
    if name is None:
        if given.headers.get(TASK):
            body = body.model_copy(update={"tools": None, "tool_choice": None})
        live = await start_unstored(scope, given, body.model, turn_request(body))
        answer = UnstoredAnswer(live, _ChatDialect(live, body))
        return await answer.response(receive, is_stream=bool(body.stream))
    start = StoredStart(
        given.caller,
        body.model,
        turn_request(newest_messages(body), continues=True),
        given.key or sdk_key(given.caller, given.headers, PATH, given.content),
        busy_policy(given.headers),
        session_name=name,
    )
    live = await start_stored(scope["state"], start)
    stored = StoredCompletion(scope["state"], live, _ChatDialect(live, body))
    return await (stored.stream() if body.stream else stored.whole())


create_chat_completion = endpoint(_respond)


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
            "content": DIALECT_STREAM_CONTENT,
            "description": "The answer, or with `stream` its chunks, as OpenAI's API has them",
        }
    },
)
async def describe_chat_completion(
    body: ChatCompletionCreate,
    key: KeyHeader = None,
    session: SessionHeader = None,
    task: TaskHeader = None,
) -> dict[str, Any]:
    """Continue a conversation, in the words of OpenAI's API.

    `model` is an agent, whose system prompt comes first. Nothing of it is stored, and the turn is
    cancelled when the client leaves, unless `X-Session-Id` names a session. Calls of the request's
    `tools` end the answer with `finish_reason: tool_calls`.
    """
    raise AssertionError((body, key, session, task), "`create_chat_completion` serves it")
