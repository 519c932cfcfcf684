"""`POST /agui/{agent}`: AG-UI 1.0 over stored turns of sessions."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response
from starlette.types import Receive, Scope
from typing_extensions import override

from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import request_key
from app.http.openapi import DIALECT_STREAM_CONTENT
from app.http.plain_endpoint import METHOD, endpoint, read_request
from app.models import BusyPolicy
from app.routers.agent_names import named_agent
from app.routers.ui_streams.agui_frames import AgUiEvents
from app.routers.ui_streams.agui_request import new_input, tools_of
from app.routers.ui_streams.conversation import Conversations
from app.routers.ui_streams.turn_stream import (
    TurnStream,
    approval_check,
    busy_policy,
    run_key,
)
from app.schemas.chat import DisconnectPolicy
from app.schemas.ui_streams import AgUiRun
from app.services.turns import TurnOptions, TurnRequest

PATH = "/agui/{agent}"
_PREFIX = "/agui/"
ROUTE = (METHOD, _PREFIX)


async def _respond(scope: Scope, receive: Receive) -> Response:
    state: dict[str, Any] = scope["state"]
    given = await read_request(scope, receive, PATH, AgUiRun)
    body = given.body
    scope["route"] = router.routes[0]  # for the log and the metrics
    path: str = scope["path"]
    agent = named_agent(path.removeprefix(_PREFIX))
    options = TurnOptions(
        on_busy=busy_policy(scope),
        key=request_key(state["caller"], run_key(body.thread_id, body.run_id), path, given.content),
    )
    conversations = Conversations(state)
    own_tools = await conversations.own_tools(agent, tools_of(body)) if body.tools else ()
    if own_tools:
        options = replace(options, request=TurnRequest(tools=own_tools))
    turn = await conversations.go_on(body.thread_id, agent, new_input(body), options)
    record = turn.live.record
    dialect = AgUiEvents(
        body.thread_id,
        body.run_id,
        record.message_id,
        is_typed=record.has_answer_schema,
        may_approve=approval_check(state["caller"]),
        answered=turn.answered,
        has_own_tools=bool(record.request and record.request.tools),
    )
    props = body.forwarded_props
    cancels = props is not None and props.on_disconnect is DisconnectPolicy.CANCEL
    return TurnStream(state, turn, dialect).response(cancels_on_disconnect=cancels)


run_agent = endpoint(_respond)


class _AgUiRoute(EndpointRoute):
    """Describes the endpoint as FastAPI's routes do, and serves the plain application."""

    @override
    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = run_agent


router = APIRouter(tags=["user interfaces"], route_class=_AgUiRoute)


@router.post(
    PATH,
    name="run_agent",
    response_class=Response,
    responses={
        200: {
            "content": DIALECT_STREAM_CONTENT,
            "description": "The events of AG-UI",
        }
    },
)
async def describe_run(
    agent: Annotated[str, Path(description="`agent-<slug>`, the agent's id, or its name.")],
    body: AgUiRun,
    x_on_busy: Annotated[
        BusyPolicy | None, Header(description="As `on_busy` of `POST /messages/text`.")
    ] = None,
) -> Response:
    """Run an agent for a client of AG-UI, and stream its events.

    The turn is stored, and goes on where the client leaves, unless `forwardedProps` has
    `"on_disconnect": "cancel"`. `state` and `context` are ignored.
    """
    raise AssertionError((agent, body, x_on_busy), "`run_agent` serves it")
