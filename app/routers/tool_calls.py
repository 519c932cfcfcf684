"""`/tool-calls`: the ledger of what agents did, and the actions that calls wait for."""

from collections.abc import Sequence
from uuid import UUID

from fastapi import APIRouter, Request, Response

from app.http.deps import Caller, DatabaseDep, ReadingDb, Storage, Turns
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.http.tool_resolution import take_action
from app.http.turn_shape import tool_call_detail, tool_call_shape
from app.models import CallStatus
from app.schemas.tool_calls import ToolCallDetail, ToolCallRead, ToolCallResolve
from app.services import crud
from app.services.turns import tool_call_not_found

router = APIRouter(prefix="/tool-calls", tags=["tool calls"], route_class=EndpointRoute)


@router.get("", response_model=list[ToolCallRead])
async def list_tool_calls(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    status: CallStatus | None = None,
    session_id: UUID | None = None,
    agent_id: UUID | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[ToolCallRead]:
    """List tool calls, the newest first; `status=awaiting_approval` is the inbox of approvals."""
    call_filter = crud.ToolCallFilter(status, session_id, agent_id)
    calls = await crud.find_tool_calls(
        db, caller, call_filter, before_id=cursor_id(cursor), limit=limit + 1
    )
    page = link_next(request, response, calls, limit, lambda call: call.id)
    return [tool_call_shape(call) for call in page]


@router.get("/{call_id}")
async def get_tool_call(call_id: UUID, db: ReadingDb, caller: Caller) -> ToolCallDetail:
    """Get a tool call with its whole result."""
    call = await crud.find_tool_call(db, caller, call_id)
    if call is None:
        raise tool_call_not_found()
    return tool_call_detail(call)


@router.post("/{call_id}/resolution")
async def resolve_tool_call(  # noqa: PLR0913, PLR0917  # one per dependency
    call_id: UUID,
    body: ToolCallResolve,
    turns: Turns,
    data: DatabaseDep,
    caller: Caller,
    storage: Storage,
) -> ToolCallDetail:
    """Approve or deny a call, send the output of the caller's own tool, or answer a question.

    Images are given as `{"type": "image", "file_id": "..."}`, alone or in a list with texts
    (`{"type": "text", "text": "..."}`). After the last action that a turn waits for, the turn goes
    on: `GET /turns/{turn_id}/events`. The same action again changes nothing; another one is
    refused. An approval whose `approval_by` is `operator` needs the scope `approvals:write`.
    """
    return tool_call_detail(await take_action(turns, data, storage, caller, call_id, body))
