"""Take an action on a tool call for a caller: what every endpoint that takes actions shares."""

import hashlib
from collections.abc import Sequence
from uuid import UUID

import orjson

from app.core.database import Database
from app.core.security import Caller, Forbidden, Permission
from app.http.tool_output import image_references, images_of_output, text_of_output
from app.models import CallStatus, ToolCall
from app.schemas.tool_calls import ToolCallResolve
from app.services import crud
from app.services.files.errors import file_not_found
from app.services.files.rows import find_files
from app.services.identity import audit
from app.services.tools.outputs import require_valid_answer, require_valid_output
from app.services.turns import Resolution, TurnEngine, tool_call_not_found
from app.services.turns.parts import ImagePart
from app.services.usage import StorageMeter


async def take_action(  # noqa: PLR0913, PLR0917  # who does what, and what it is done with
    turns: TurnEngine,
    database: Database,
    storage: StorageMeter,
    caller: Caller,
    call_id: UUID,
    action: ToolCallResolve,
) -> ToolCall:
    """Take an action, and return the call afterwards; the turn goes on if it was the last one.

    Raises `ToolCallNotFound`, `Forbidden` where an operator must approve, `FileNotFound`, the
    errors of an output or answer that its schema does not allow, `StorageFull`, and what
    `TurnActions.resolve` does.
    """
    async with database.reading() as db:
        call = await crud.find_tool_call(db, caller, call_id)
        if call and "output" in action.model_fields_set and call.tool_id and call.tool_version:
            tool = (call.tool_id, call.tool_version)
            await require_valid_output(db, caller.workspace_id, tool, action.output)
        if call and action.answer and call.status is CallStatus.AWAITING_ANSWER:
            require_valid_answer(call.question or {}, action.answer.model_dump())
    if call is None:
        raise tool_call_not_found()
    if action.decision and not may_approve(caller, call.approval_by):
        raise Forbidden(f"This approval needs the scope `{Permission.APPROVALS_WRITE}`.")
    images = await _images(database, caller, action)
    resolution = _resolution(action, caller.actor, images)
    if resolution.decision == "output":
        size_bytes = len((resolution.text or "").encode())
        await storage.require_room(caller.workspace_id, size_bytes)
    resolved = await turns.actions.resolve(caller.workspace_id, call_id, resolution)
    async with database.transaction() as db:
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
                decision=resolution.decision,
                arguments_sha256=arguments,
            )
        return call


def may_approve(caller: Caller, approval_by: str | None) -> bool:
    """Tell whether the caller may approve a call; `approval_by` is `operator` or `user`."""
    return approval_by == "user" or Permission.APPROVALS_WRITE in caller.permissions


async def _images(
    database: Database, caller: Caller, action: ToolCallResolve
) -> Sequence[ImagePart]:
    """Return the images of an output. Raises `FileNotFound` and `FileUnreadable`."""
    references = image_references(action.output)
    if not references:
        return ()
    async with database.reading() as db:
        found = await find_files(db, caller, references)
    if found.keys() != set(references):
        raise file_not_found()
    return images_of_output([found[file_id] for file_id in references])


def _resolution(action: ToolCallResolve, by: str, images: Sequence[ImagePart]) -> Resolution:
    if action.decision:
        return Resolution(action.decision, by, action.reason if action.decision == "deny" else None)
    if action.error is not None:
        return Resolution("error", by, action.error)
    if action.answer is not None:
        answer = orjson.dumps(action.answer.model_dump(), option=orjson.OPT_SORT_KEYS)
        return Resolution("answer", by, answer.decode())
    return Resolution("output", by, text_of_output(action.output), images)
