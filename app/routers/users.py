"""`/users`: delete what is stored of an end user."""

from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import anyio
from fastapi import APIRouter

from app.http.deps import Caller, DatabaseDep, Turns
from app.http.endpoint_route import EndpointRoute
from app.schemas.chat import UserId
from app.schemas.exports import DeletedUserRead
from app.services import crud
from app.services.identity import audit

router = APIRouter(prefix="/users", tags=["users"], route_class=EndpointRoute)

_ENDING_SECONDS = 10
"""How long the user's turns may take to end once they are cancelled."""


@router.delete("/{user_id}", response_model=DeletedUserRead)
async def delete_user(
    user_id: UserId, data: DatabaseDep, turns: Turns, caller: Caller
) -> crud.DeletedUser:
    """Delete an end user's sessions and sound, for good; their usage is kept under another name.

    Turns of the user that run are cancelled, and their end is awaited for up to 10 s, so that
    their usage is kept under that name, too.
    """
    give_up_at = anyio.current_time() + _ENDING_SECONDS
    while True:
        async with data.transaction() as db:
            running = await crud.unsettled_turns(db, caller, user_id)
            if not running or anyio.current_time() >= give_up_at:
                receipt, session_ids = await crud.delete_user(db, caller, user_id)
                counts = {
                    "sessions": receipt.sessions,
                    "turns": receipt.turns,
                    "messages": receipt.messages,
                }
                audit.record(db, caller, audit.Action.USER_DELETED, receipt.kept_as, **counts)
                break
        with anyio.move_on_after(max(0, give_up_at - anyio.current_time())):
            await _cancel(turns, caller, running)
    for session_id in session_ids:
        turns.discard_session(caller.workspace_id, session_id)
    return receipt


async def _cancel(turns: Turns, caller: Caller, turn_ids: Sequence[UUID]) -> None:
    """Cancel turns on whichever servers they run, and wait for their ends."""

    async def cancel(turn_id: UUID) -> None:
        with suppress(crud.TurnNotFound):
            await turns.cancel(caller, turn_id)

    async with anyio.create_task_group() as group:
        for turn_id in turn_ids:
            group.start_soon(cancel, turn_id)
