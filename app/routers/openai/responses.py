"""`POST /v1/responses`, as a plain ASGI endpoint: a turn in the words of responses."""

from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import KeyHeader, sdk_key
from app.http.openapi import DIALECT_STREAM_CONTENT
from app.http.plain_endpoint import METHOD, endpoint, read_request
from app.models import utc_now
from app.routers.openai.input_history import given_input
from app.routers.openai.response_object import response_fields
from app.routers.openai.responses_frames import ResponseEvents, ResponseHead, answer_values
from app.routers.openai.responses_request import turn_request
from app.routers.openai.stored_answer import StoredResponse
from app.routers.openai.stored_turn import StoredStart, busy_policy, start_stored, with_previous
from app.routers.openai.unstored_answer import UnstoredAnswer, start_unstored
from app.schemas.openai_responses import ResponseCreate
from app.services.turns import LiveTurn, TurnRequest
from app.services.turns.events import EventValue

PATH = "/v1/responses"
ROUTE = (METHOD, PATH)


class _ResponseDialect:
    """Fulfils `Dialect`."""

    def __init__(self, live: LiveTurn, request: TurnRequest) -> None:
        record = live.record
        fields = response_fields(record.id, record.created_at, request, is_stored=False)
        head = ResponseHead(record.message_id, fields)
        self._events = ResponseEvents(head, shows_calls=bool(request.tools))

    def begin(self) -> bytes:
        return self._events.begin()

    def encode(self, values: list[EventValue]) -> bytes:
        return self._events.encode(values)

    def complete(self, live: LiveTurn) -> bytes:
        progress = live.progress
        ended_at = progress.ended_at or utc_now()
        return self._events.complete(
            progress.finish_reason, progress.usage, int(ended_at.timestamp())
        )

    def fail(self, error: dict[str, Any]) -> bytes:
        return self._events.fail(error)

    def whole(self, live: LiveTurn) -> dict[str, Any]:
        outcome = live.outcome
        if outcome:
            is_typed = live.record.has_answer_schema
            self._events.encode(answer_values(outcome.content, outcome.parts, is_typed=is_typed))
        self.complete(live)
        return self._events.response


async def _respond(scope: Scope, receive: Receive) -> Response:
    given = await read_request(scope, receive, PATH, ResponseCreate)
    found = await given_input(scope["state"]["database"], given.caller, given.body)
    body = found.body
    request = turn_request(body, continues=found.continues_response_id is not None)
    if body.store is False:
        request = await with_previous(scope["state"], body.previous_response_id, request)
        live = await start_unstored(scope, given, body.model, request)
        dialect = _ResponseDialect(live, request)
        return await UnstoredAnswer(live, dialect).response(receive, is_stream=bool(body.stream))
    if found.continues_response_id:
        request = replace(request, first_seq=1)
    start = StoredStart(
        given.caller,
        body.model,
        request,
        given.key or sdk_key(given.caller, given.headers, PATH, given.content),
        busy_policy(given.headers),
        body.previous_response_id or found.continues_response_id,
        body.conversation_id,
    )
    live = await start_stored(scope["state"], start)
    answer = StoredResponse(scope["state"], live)
    if body.stream:
        return answer.stream()
    return await (answer.now() if body.background else answer.whole())


create_response = endpoint(_respond)


class _ResponseRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = create_response


router = APIRouter(tags=["openai"], route_class=_ResponseRoute)


@router.post(
    PATH,
    name="create_response",
    responses={
        200: {
            "content": DIALECT_STREAM_CONTENT,
            "description": "The response, or with `stream` its events, as OpenAI's API has them",
        }
    },
)
async def describe_response(body: ResponseCreate, key: KeyHeader = None) -> dict[str, Any]:
    """Ask an agent, in the words of OpenAI's API.

    `model` is an agent, whose system prompt comes first. The response is a turn of a session, and
    goes on when the client leaves; with `store: false` nothing of it is stored, and it is cancelled
    then.
    """
    raise AssertionError((body, key), "`create_response` serves it")
