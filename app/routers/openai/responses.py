"""`POST /v1/responses`, as a plain ASGI endpoint: an unstored turn in the words of responses."""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import KeyHeader
from app.http.openapi import BINARY_SCHEMA
from app.models import utc_now
from app.routers.openai.responses_frames import ResponseEvents, ResponseHead
from app.routers.openai.responses_request import turn_request
from app.routers.openai.unstored_answer import METHOD, UnstoredAnswer, endpoint, start_turn
from app.schemas.openai_responses import ResponseCreate
from app.services.turns import LiveTurn
from app.services.turns.events import (
    EventValue,
    OutputTextDelta,
    ReasoningText,
    ToolCallArguments,
)
from app.services.turns.parts import ReasoningPart, ToolCallPart

PATH = "/v1/responses"
ROUTE = (METHOD, PATH)


class _ResponseDialect:
    """Fulfils `Dialect`."""

    def __init__(self, live: LiveTurn, body: ResponseCreate) -> None:
        head = ResponseHead(live.record.message_id.hex, _fields(live, body))
        self._events = ResponseEvents(head, shows_calls=bool(body.tools))

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
        self._events.encode(_values(live))
        self.complete(live)
        return self._events.response


def _values(live: LiveTurn) -> Iterator[EventValue]:
    """Yield an answer as the fewest events that tell it."""
    outcome = live.outcome
    parts = (outcome.parts or ()) if outcome else ()
    for part in parts:
        if isinstance(part, ReasoningPart):
            yield ReasoningText(part.text)
    if outcome and outcome.content:
        yield OutputTextDelta(outcome.content)
    for part in parts:
        if isinstance(part, ToolCallPart):
            yield ToolCallArguments(part.call_id, part.name, part.arguments)


def _fields(live: LiveTurn, body: ResponseCreate) -> dict[str, Any]:
    """Return the fields of the object that do not change while the turn runs."""
    record = live.record
    return {
        "id": f"resp_{record.id.hex}",
        "object": "response",
        "created_at": int(record.created_at.timestamp()),
        "model": body.model,
        "previous_response_id": None,
        "instructions": body.instructions,
        "tools": [_echoed(tool) for tool in body.tools or ()],
        "tool_choice": body.tool_choice or "auto",
        "truncation": "disabled",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": {"type": "text"}},
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": 0,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "reasoning": {"effort": body.reasoning.effort, "summary": None} if body.reasoning else None,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": body.metadata or {},
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "conversation": None,
        "user": body.user,
    }


def _echoed(tool: dict[str, Any]) -> dict[str, Any]:
    names = ("type", "name", "description", "parameters")
    return {name: tool.get(name) for name in names} | {"strict": tool.get("strict") is True}


async def _respond(scope: Scope, receive: Receive) -> Response:
    body, live = await start_turn(scope, receive, PATH, ResponseCreate, turn_request)
    answer = UnstoredAnswer(live, _ResponseDialect(live, body))
    return await answer.response(receive, is_stream=bool(body.stream))


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
            "content": {"text/event-stream": {"schema": BINARY_SCHEMA}},
            "description": "The response, or with `stream` its events, as OpenAI's API has them",
        }
    },
)
async def describe_response(body: ResponseCreate, key: KeyHeader = None) -> dict[str, Any]:
    """Continue a conversation, in the words of OpenAI's API; nothing of it is stored.

    `model` is an agent, whose system prompt comes first. The turn is cancelled when the client
    leaves. `store` must be false.
    """
    raise AssertionError((body, key), "`create_response` serves it")
