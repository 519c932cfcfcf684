"""`/v1/conversations`: sessions and their messages, as OpenAI's API has conversations and items."""

from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Forbidden
from app.http.deps import Caller, DatabaseDep, Db, ReadingDb, Storage, Turns
from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import Key, idempotent
from app.http.openai_errors import InvalidParameter
from app.models import Message, Role, Session
from app.routers.openai.attachments import GivenLine
from app.routers.openai.ids import CONVERSATION, our_id, wire_id
from app.routers.openai.items import find_message, item_page, message_items, session_items
from app.routers.openai.posted_messages import posted_messages
from app.routers.openai.responses_request import read_items
from app.schemas.openai_conversations import (
    ConversationCreate,
    ConversationRead,
    ConversationUpdate,
    ItemsCreate,
)
from app.services import crud
from app.services.identity import audit
from app.services.turns.parts import encode_parts
from app.services.usage import StorageMeter
from app.services.usage.storage import ROW_BYTES

router = APIRouter(prefix="/v1/conversations", tags=["openai"], route_class=EndpointRoute)


class ItemOrder(StrEnum):
    """In which order items are listed."""

    OLDEST_FIRST = "asc"
    NEWEST_FIRST = "desc"


Order = Annotated[ItemOrder, Query(description="`desc`: the newest item first.")]
ItemLimit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="The id of an item.")]
Include = Annotated[
    list[str] | None, Query(alias="include[]", description="Ignored: nothing is left out.")
]


@router.post("", name="create_conversation", response_model=ConversationRead)
async def create_conversation(
    body: ConversationCreate, db: Db, caller: Caller, key: Key, storage: Storage
) -> Response:
    """Begin a conversation; the first response that belongs to it names its agent."""

    async def create() -> ConversationRead:
        session = await crud.create_conversation(db, caller, dict(body.metadata))
        await _post(db, caller, storage, session, body.items)
        return _conversation(session)

    return await idempotent(key, db, caller, ConversationRead, create, status=HTTPStatus.OK)


@router.get("/{conversation_id}", name="get_conversation")
async def get_conversation(conversation_id: str, db: ReadingDb, caller: Caller) -> ConversationRead:
    """Get a conversation; every session is one."""
    return _conversation(await _find(db, caller, conversation_id))


@router.post("/{conversation_id}", name="update_conversation")
async def update_conversation(
    conversation_id: str, body: ConversationUpdate, db: Db, caller: Caller
) -> ConversationRead:
    """Set the metadata of a conversation."""
    session = await _find(db, caller, conversation_id, for_update=True)
    session.metadata_ = dict(body.metadata)
    return _conversation(session)


@router.delete("/{conversation_id}", name="delete_conversation")
async def delete_conversation(
    conversation_id: str, data: DatabaseDep, turns: Turns, caller: Caller
) -> dict[str, Any]:
    """Delete a conversation and everything in it, for good; its running turns are cancelled."""
    async with data.transaction() as db:
        session = await _find(db, caller, conversation_id)
        await crud.delete_session(db, caller, session.id, without_agent=True)
        audit.record(db, caller, audit.Action.SESSION_DELETED, session.id)
    turns.discard_session(caller.workspace_id, session.id)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.get("/{conversation_id}/items", name="list_conversation_items")
async def list_items(  # noqa: PLR0913, PLR0917  # one per query parameter
    conversation_id: str,
    db: ReadingDb,
    caller: Caller,
    order: Order = ItemOrder.NEWEST_FIRST,
    limit: ItemLimit = 20,
    after: After = None,
    include: Include = None,  # noqa: ARG001
) -> dict[str, Any]:
    """List the items of a conversation."""
    session = await _find(db, caller, conversation_id)
    is_newest_first = order is ItemOrder.NEWEST_FIRST
    items = session_items(db, session, after=after, newest_first=is_newest_first)
    return await item_page(items, limit)


@router.post("/{conversation_id}/items", name="create_conversation_items")
async def create_items(  # noqa: PLR0913, PLR0917  # one per parameter and dependency
    conversation_id: str,
    body: ItemsCreate,
    db: Db,
    caller: Caller,
    storage: Storage,
    include: Include = None,  # noqa: ARG001
) -> dict[str, Any]:
    """Add items to a conversation, without a turn."""
    session = await _find(db, caller, conversation_id, for_update=True)
    messages = await _post(db, caller, storage, session, body.items)
    items = [item for message in messages for item in message_items(message)]
    return {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": False,
    }


@router.get("/{conversation_id}/items/{item_id}", name="get_conversation_item")
async def get_item(
    conversation_id: str,
    item_id: str,
    db: ReadingDb,
    caller: Caller,
    include: Include = None,  # noqa: ARG001
) -> dict[str, Any]:
    """Get an item of a conversation."""
    session = await _find(db, caller, conversation_id)
    message = await find_message(db, session, item_id)
    return next(item for item in message_items(message) if item["id"] == item_id)


@router.delete("/{conversation_id}/items/{item_id}", name="delete_conversation_item")
async def delete_item(
    conversation_id: str, item_id: str, data: DatabaseDep, turns: Turns, caller: Caller
) -> ConversationRead:
    """Delete an item, and the others of its message: what it says is wiped."""
    async with data.transaction() as db:
        session = await _find(db, caller, conversation_id, for_update=True)
        await crud.wipe_message(db, await find_message(db, session, item_id))
        conversation = _conversation(session)
    turns.cache.histories.discard((session.workspace_id, session.id))
    return conversation


def _conversation(session: Session) -> ConversationRead:
    return ConversationRead(
        id=wire_id(CONVERSATION, session.id),
        created_at=int(session.created_at.timestamp()),
        metadata=session.metadata_,
    )


async def _find(
    db: AsyncSession, caller: Caller, conversation_id: str, *, for_update: bool = False
) -> Session:
    session_id = our_id(CONVERSATION, conversation_id)
    if session_id is None:
        raise crud.session_not_found()
    return await crud.get_session(db, caller, session_id, for_update=for_update, without_agent=True)


async def _post(
    db: AsyncSession,
    caller: Caller,
    storage: StorageMeter,
    session: Session,
    items: list[dict[str, Any]],
) -> list[Message]:
    lines = read_items(items)
    if any(isinstance(line, GivenLine) for line in lines):
        raise InvalidParameter(
            "items", "Images and files come with a response's input.", "unsupported_value"
        )
    posted = posted_messages(lines)
    if caller.user_id is not None and any(line.role is Role.ASSISTANT for line in posted):
        raise Forbidden("End users cannot add answers to a conversation.")
    size = sum(ROW_BYTES + line.size_bytes for line in posted)
    await storage.require_room(caller.workspace_id, size, db)
    rows = [
        crud.PostedRow(line.role, line.content, encode_parts(line.parts) if line.parts else None)
        for line in posted
    ]
    return list(await crud.post_messages(db, session, rows))
