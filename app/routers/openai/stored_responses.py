"""`/v1/responses/{response_id}`: turns that were asked for before."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response

from app.http.deps import Caller, DatabaseDep, ReadingDb, Turns
from app.http.endpoint_route import EndpointRoute
from app.http.openapi import DIALECT_STREAM_CONTENT
from app.routers.openai.conversations import After, Include, ItemLimit, ItemOrder, Order
from app.routers.openai.ids import RESPONSE, our_id
from app.routers.openai.items import item_page, session_items
from app.routers.openai.response_object import stored_response
from app.routers.openai.stored_answer import StoredResponse
from app.services import crud
from app.services.identity import audit
from app.services.turns import TurnRequest

router = APIRouter(prefix="/v1/responses", tags=["openai"], route_class=EndpointRoute)


@router.get(
    "/{response_id}",
    name="get_response",
    response_model=None,
    responses={
        200: {
            "content": DIALECT_STREAM_CONTENT,
            "description": "The response, or with `stream` its events",
        }
    },
)
async def get_response(  # noqa: PLR0913, PLR0917  # one per parameter and dependency
    response_id: str,
    turns: Turns,
    data: DatabaseDep,
    caller: Caller,
    stream: Annotated[bool, Query()] = False,  # noqa: FBT002
    starting_after: Annotated[
        int, Query(ge=-1, le=2**31 - 1, description="Only events with a higher number.")
    ] = -1,
    include: Include = None,  # noqa: ARG001
    include_obfuscation: Annotated[bool, Query(description="Ignored.")] = False,  # noqa: ARG001, FBT002
) -> dict[str, Any] | Response:
    """Get a response as it is now, or with `stream` its events, live or after its end."""
    async with data.reading() as db:
        found = await crud.get_response_turn(db, caller, _turn_id(response_id))
    if not stream:
        return stored_response(found)
    live = await turns.find(caller, found.turn.id)
    state = {"turns": turns, "database": data, "caller": caller}
    return StoredResponse(state, live, found.model).stream(starting_after)


@router.delete("/{response_id}", name="delete_response")
async def delete_response(
    response_id: str, data: DatabaseDep, turns: Turns, caller: Caller
) -> dict[str, Any]:
    """Delete a response; a conversation keeps its items."""
    async with data.transaction() as db:
        left = await crud.delete_response(db, caller, _turn_id(response_id))
        if left:
            await crud.delete_session(db, caller, left)
            audit.record(db, caller, audit.Action.SESSION_DELETED, left)
    if left:
        turns.discard_session(caller.workspace_id, left)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel", name="cancel_response")
async def cancel_response(
    response_id: str, turns: Turns, data: DatabaseDep, caller: Caller
) -> dict[str, Any]:
    """Cancel a response on whichever server makes it; one that has ended is not changed."""
    turn_id = _turn_id(response_id)
    async with data.reading() as db:
        await crud.get_response_turn(db, caller, turn_id)
    await turns.cancel(caller, turn_id)
    async with data.reading() as db:
        return stored_response(await crud.get_response_turn(db, caller, turn_id))


@router.get("/{response_id}/input_items", name="list_response_input_items")
async def list_input_items(  # noqa: PLR0913, PLR0917  # one per query parameter
    response_id: str,
    db: ReadingDb,
    caller: Caller,
    order: Order = ItemOrder.NEWEST_FIRST,
    limit: ItemLimit = 20,
    after: After = None,
    include: Include = None,  # noqa: ARG001
) -> dict[str, Any]:
    """List the items that a response was asked with."""
    found = await crud.get_response_turn(db, caller, _turn_id(response_id))
    request = TurnRequest.from_json(found.turn.request or {})
    seqs = (request.first_seq or found.turn.user_seq, found.turn.user_seq)
    is_newest_first = order is ItemOrder.NEWEST_FIRST
    items = session_items(db, found.session, after=after, newest_first=is_newest_first, seqs=seqs)
    return await item_page(items, limit)


def _turn_id(response_id: str) -> UUID:
    turn_id = our_id(RESPONSE, response_id)
    if turn_id is None:
        raise crud.ResponseNotFound("There is no response with this id.")
    return turn_id
