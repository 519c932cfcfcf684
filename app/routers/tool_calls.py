"""`/tool-calls`: the ledger of what agents did, and the actions that calls wait for."""

import hashlib
from collections.abc import Sequence
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response

from app.core.security import Forbidden, Permission
from app.http.deps import Caller, DatabaseDep, ReadingDb, Storage, Turns
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.http.tool_output import image_references, images_of_output, text_of_output
from app.http.turn_shape import tool_call_detail, tool_call_shape
from app.models import CallStatus
from app.schemas.tool_calls import ToolCallDetail, ToolCallRead, ToolCallResolve
from app.services import crud
from app.services.files.errors import file_not_found
from app.services.files.rows import find_files
from app.services.identity import audit
from app.services.tools.outputs import require_valid_answer, require_valid_output
from app.services.turns import Resolution, tool_call_not_found
from app.services.turns.parts import ImagePart

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
    async with data.reading() as db:
        call = await crud.find_tool_call(db, caller, call_id)
        if call and "output" in body.model_fields_set and call.tool_id and call.tool_version:
            tool = (call.tool_id, call.tool_version)
            await require_valid_output(db, caller.workspace_id, tool, body.output)
        if call and body.answer and call.status is CallStatus.AWAITING_ANSWER:
            require_valid_answer(call.question or {}, body.answer.model_dump())
    if call is None:
        raise tool_call_not_found()
    if body.decision and call.approval_by != "user":
        _require_operator(caller)
    images = await _images(data, caller, body)
    action = _resolution(body, caller.actor, images)
    if action.decision == "output":
        size_bytes = len((action.text or "").encode())
        await storage.require_room(caller.workspace_id, size_bytes)
    resolved = await turns.actions.resolve(caller.workspace_id, call_id, action)
    async with data.transaction() as db:
        call = await crud.find_tool_call(db, caller, call_id)
        if call is None:
            raise tool_call_not_found()
        if resolved.is_new:
            arguments = hashlib.sha256(call.arguments.encode()).hexdigest()
            audit.record(
                db,
                caller,
                audit.Action.TOOL_CALL_RESOLVED,
                call_id,
                decision=action.decision,
                arguments_sha256=arguments,
            )
        return tool_call_detail(call)


def _require_operator(caller: Caller) -> None:
    if Permission.APPROVALS_WRITE not in caller.permissions:
        raise Forbidden(f"This approval needs the scope `{Permission.APPROVALS_WRITE}`.")


async def _images(data: DatabaseDep, caller: Caller, body: ToolCallResolve) -> Sequence[ImagePart]:
    """Return the images of an output. Raises `FileNotFound` and `FileUnreadable`."""
    references = image_references(body.output)
    if not references:
        return ()
    async with data.reading() as db:
        found = await find_files(db, caller, references)
    if found.keys() != set(references):
        raise file_not_found()
    return images_of_output([found[file_id] for file_id in references])


def _resolution(body: ToolCallResolve, by: str, images: Sequence[ImagePart]) -> Resolution:
    if body.decision:
        return Resolution(body.decision, by, body.reason if body.decision == "deny" else None)
    if body.error is not None:
        return Resolution("error", by, body.error)
    if body.answer is not None:
        answer = orjson.dumps(body.answer.model_dump(), option=orjson.OPT_SORT_KEYS)
        return Resolution("answer", by, answer.decode())
    return Resolution("output", by, text_of_output(body.output), images)
