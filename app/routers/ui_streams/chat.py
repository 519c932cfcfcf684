"""`/api/chat`: what `useChat` of the AI SDK speaks, over stored turns of sessions."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import KeyHeader
from app.http.openapi import DIALECT_STREAM_CONTENT
from app.http.plain_endpoint import METHOD, endpoint, read_request
from app.models import BusyPolicy
from app.routers.agent_names import named_agent
from app.routers.ui_streams.chat_frames import UIMessageChunks
from app.routers.ui_streams.chat_request import new_input
from app.routers.ui_streams.conversation import ContinuedTurn, Conversations
from app.routers.ui_streams.turn_stream import (
    TurnStream,
    approval_check,
    busy_policy,
)
from app.schemas.ui_streams import UIChatCreate, is_session_name
from app.services.turns import TurnOptions

PATH = "/api/chat"
ROUTE = (METHOD, PATH)
_STREAM_PATH = "/api/chat/{chat_id}/stream"
_PROTOCOL_HEADER = {"x-vercel-ai-ui-message-stream": "v1"}
_CONTENT: dict[str, Any] = DIALECT_STREAM_CONTENT

ChatId = Annotated[str, Path(description="The chat's id, as in `POST /api/chat`.")]


async def _respond(scope: Scope, receive: Receive) -> Response:
    state: dict[str, Any] = scope["state"]
    given = await read_request(scope, receive, PATH, UIChatCreate)
    body = given.body
    agent = body.agent or given.headers.get(b"x-agent", b"").decode("latin-1")
    options = TurnOptions(on_busy=busy_policy(scope), key=given.key)
    turn = await Conversations(state).go_on(body.id, named_agent(agent), new_input(body), options)
    return _stream(state, turn, asks_for_approvals=body.approvals)


def _stream(
    state: dict[str, Any], turn: ContinuedTurn, *, asks_for_approvals: bool = True
) -> Response:
    record = turn.live.record
    dialect = UIMessageChunks(
        record.message_id,
        record.id,
        is_typed=record.has_answer_schema,
        may_approve=approval_check(state["caller"], is_known=asks_for_approvals),
        answered=turn.answered,
    )
    return TurnStream(state, turn, dialect).response(_PROTOCOL_HEADER)


continue_chat = endpoint(_respond)


class _ChatRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if METHOD in (self.methods or ()):
            self.app = continue_chat


router = APIRouter(tags=["user interfaces"], route_class=_ChatRoute)


@router.post(
    PATH,
    name="continue_chat",
    response_class=Response,
    responses={200: {"content": _CONTENT, "description": "The AI SDK's UI message stream"}},
)
async def describe_chat(
    body: UIChatCreate,
    key: KeyHeader = None,
    x_agent: Annotated[str | None, Header(description="Who answers, as `agent`.")] = None,
    x_on_busy: Annotated[
        BusyPolicy | None, Header(description="As `on_busy` of `POST /messages/text`.")
    ] = None,
) -> Response:
    """Continue a chat of the AI SDK's `useChat`, and stream the answer.

    The turn is stored, and goes on where the client leaves. Errors before the stream are plain
    text, which `useChat` shows as it is.
    """
    raise AssertionError((body, key, x_agent, x_on_busy), "`continue_chat` serves it")


@router.get(
    _STREAM_PATH,
    response_class=Response,
    responses={
        200: {"content": _CONTENT, "description": "The turn that runs, from its beginning"},
        204: {"description": "No turn of the chat runs, or there is no such chat"},
    },
)
async def resume_chat(
    chat_id: ChatId,
    request: Request,
    approvals: bool = True,  # noqa: FBT001, FBT002  # a query parameter
) -> Response:
    """Follow the chat's running turn from its beginning, as after the page was loaded anew."""
    state: dict[str, Any] = request.scope["state"]
    live = await Conversations(state).running_turn(chat_id) if is_session_name(chat_id) else None
    if live is None:
        return Response(status_code=204)
    return _stream(state, ContinuedTurn(live), asks_for_approvals=approvals)


@router.delete(_STREAM_PATH, status_code=204)
async def stop_chat(chat_id: ChatId, request: Request) -> None:
    """Cancel the chat's turns that run or wait; what was said so far is stored."""
    if is_session_name(chat_id):
        await Conversations(request.scope["state"]).stop(chat_id)
