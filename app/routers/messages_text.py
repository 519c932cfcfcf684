"""`POST /messages/text`, as a plain ASGI endpoint.

FastAPI's own work was a quarter of a text turn's CPU. The route describes the endpoint to OpenAPI;
permission, body and idempotency key are checked by the functions that every endpoint uses.
"""

from typing import Any

import orjson
from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.core.errors import AppError
from app.core.security import Caller, Forbidden, Permission
from app.http.accepted_turn import (
    ACCEPTED_RESPONSE,
    PreferHeader,
    accepted_response,
    prefers_async,
)
from app.http.answer_format import answer_format_of
from app.http.content_negotiation import prefers_event_stream
from app.http.disconnection import cancel_on_disconnect, unless_disconnected
from app.http.endpoint_route import EndpointRoute
from app.http.event_stream import EventStream
from app.http.idempotency import REPLAYED, KeyHeader, request_key
from app.http.message_parts import given_parts
from app.http.openapi import EVENT_STREAM_CONTENT, MP3_CONTENT
from app.http.permissions import endpoint_policy
from app.http.problems import problem_response
from app.http.query_parameters import require_known_parameters
from app.http.request_body import (
    JSON_TYPE,
    MESSAGE_BYTES,
    parse_json_body,
    read_body,
    require_announced_length,
    require_few_values,
    require_media_type,
)
from app.http.voice_answer import AnswerRequest, voice_answer_response
from app.models import Modality
from app.schemas.chat import ReplyRead, TextMessageCreate
from app.services.turns import LiveTurn, TurnEngine, TurnOptions
from app.services.turns.execution.message_input import MessageInput
from app.services.voice import VoiceService

METHOD, PATH = "POST", "/messages/text"
_POLICY = endpoint_policy((METHOD,), PATH)


async def send_text_message(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request; the ASGI application of the endpoint."""
    try:
        response = await _respond(scope, receive)
    except AppError as error:
        response = problem_response(error, scope["state"]["request_id"])
    await response(scope, receive, send)


async def _respond(scope: Scope, receive: Receive) -> Response:
    state: dict[str, Any] = scope["state"]
    turns: TurnEngine = state["turns"]
    caller = state["caller"]
    _POLICY.check(caller)
    require_known_parameters(scope.get("query_string", b"").decode("latin-1"), ())
    headers: dict[bytes, bytes] = dict(scope["headers"])
    require_media_type(headers.get(b"content-type", b"").decode("latin-1"), JSON_TYPE)
    require_announced_length(headers.get(b"content-length", b"").decode("latin-1"), MESSAGE_BYTES)
    data = await read_body(scope, receive, MESSAGE_BYTES)
    require_few_values(data)
    body = parse_json_body(data, TextMessageCreate)
    key = request_key(caller, headers.get(b"idempotency-key"), PATH, data)
    answer_format = answer_format_of(body.response_format)
    if body.agent_version is not None:
        _require_reader_of_agents(caller)
    options = TurnOptions(
        body.on_busy, key, answer_format=answer_format, agent_version=body.agent_version
    )
    content = body.content
    if not isinstance(content, str):
        given = await given_parts(content)
        message_input: MessageInput = state["message_input"]
        content, options = await message_input.prepare(caller, body.session_id, given, options)
    if body.output is Modality.VOICE:
        return await _spoken_response(scope, receive, body, content, options)
    live = await turns.start(caller, body.session_id, content, None, options)
    if prefers_async(headers.get(b"prefer")):
        return await accepted_response(state["database"], caller, live)
    on_disconnect = cancel_on_disconnect(turns, caller, live, body.on_disconnect)
    response_headers = {REPLAYED: "true"} if live.is_replayed else {}
    if prefers_event_stream(scope["headers"]):
        return EventStream(
            engine=turns,
            database=state["database"],
            live=live,
            on_disconnect=on_disconnect,
            headers=response_headers,
        )
    if on_disconnect:
        await unless_disconnected(receive, on_disconnect, lambda: turns.wait(live))
    await turns.wait(live)
    if live.waits_for_action:
        return await accepted_response(state["database"], caller, live, is_preferred=False)
    return _reply_response(live, response_headers)


def _require_reader_of_agents(caller: Caller) -> None:
    if not caller.sees_all_sessions or Permission.AGENTS_READ not in caller.permissions:
        raise Forbidden(f"`agent_version` needs a key with the scope `{Permission.AGENTS_READ}`.")


async def _spoken_response(
    scope: Scope,
    receive: Receive,
    body: TextMessageCreate,
    content: str,
    options: TurnOptions,
) -> Response:
    """Answer with speech, as the voice endpoint does."""
    state: dict[str, Any] = scope["state"]
    voice: VoiceService = state["voice"]
    caller, streams = state["caller"], prefers_event_stream(scope["headers"])
    answer = await voice.speak_reply(caller, body.session_id, content, options, with_clips=streams)
    answer_request = AnswerRequest(
        caller,
        state["turns"],
        state["database"],
        receive,
        body.on_disconnect,
        in_background=prefers_async(dict[bytes, bytes](scope["headers"]).get(b"prefer")),
        as_events=streams,
    )
    return await voice_answer_response(answer_request, answer)


def _reply_response(live: LiveTurn, headers: dict[str, str]) -> Response:
    """Return the settled turn's reply. Raises the error that it ended with."""
    reply = live.reply()
    # As `ReplyRead` would: asyncpg has a UUID of its own, which only `str` understands.
    content = orjson.dumps(reply, default=str, option=orjson.OPT_UTC_Z)
    return Response(content, headers=headers, media_type=JSON_TYPE)


class _TextMessageRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = send_text_message


router = APIRouter(tags=["messages"], route_class=_TextMessageRoute)


@router.post(
    PATH,
    name="send_text_message",
    responses={
        200: {
            "content": {**MP3_CONTENT, **EVENT_STREAM_CONTENT},
            "description": "The answer, with `output: voice` spoken as MP3, or the turn's events",
        },
        202: ACCEPTED_RESPONSE,
    },
)
async def send_text(
    body: TextMessageCreate, key: KeyHeader = None, prefer: PreferHeader = None
) -> ReplyRead:
    """Send a message and get the agent's answer.

    With `Accept: text/event-stream` the turn is streamed as it happens. Both messages are stored,
    and the turn continues if the client disconnects: `GET /turns/{id}` returns its result. With
    `Prefer: respond-async` the turn runs in the background from the beginning. With
    `"output": "voice"` the answer is spoken: the response is as that of `POST /messages/voice`.
    """
    raise AssertionError((body, key, prefer), "`send_text_message` serves it")
