"""Items that a client sends again: references to ours, and whole histories that are stored."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.security import Caller
from app.core.value_objects import value_object
from app.http.openai_errors import InvalidParameter
from app.models import Message, Role
from app.routers.openai.ids import RESPONSE, item_place, wire_id
from app.routers.openai.items import message_items, session_items
from app.routers.openai.posted_messages import posted_messages
from app.routers.openai.responses_request import read_items
from app.schemas.openai_responses import ResponseCreate
from app.services import crud
from app.services.turns.requests import PostedMessage

_REFERENCE = "item_reference"
_INSTRUCTIONS = ("system", "developer")
_MOST_MESSAGES = 4000
Item = dict[str, Any]


@value_object(frozen=True, slots=True)
class GivenInput:
    """The input of a request, without what its session holds already."""

    body: ResponseCreate
    continues_response_id: str | None = None
    """Where the input began with the history of this response."""


async def given_input(database: Database, caller: Caller, body: ResponseCreate) -> GivenInput:
    """Return a request whose references are items. Raises `InvalidParameter`.

    Where its input begins with all that the session of one of its answers holds up to there, that
    is left out.
    """
    if isinstance(body.input, str):
        return GivenInput(body)
    places = {index: place for index, item in enumerate(body.input) if (place := _place(item))}
    if not places and not any(item.get("type") == _REFERENCE for item in body.input):
        return GivenInput(body)
    async with database.reading() as db:
        ids = {message_id for message_id, _ in places.values()}
        messages = await crud.find_messages(db, caller, list(ids))
        items = [_resolved(index, item, messages) for index, item in enumerate(body.input)]
        body = body.model_copy(update={"input": items})
        if body.store is False or body.previous_response_id or body.conversation_id:
            return GivenInput(body)
        answered = [
            index
            for index, (message_id, _) in places.items()
            if (message := messages.get(message_id))
            and message.role is Role.ASSISTANT
            and message.turn_id
        ]
        if not answered or max(answered) == len(items) - 1:
            return GivenInput(body)
        last = max(answered)
        answer = messages[places[last][0]]
        if not await _is_held(db, caller, answer, items[: last + 1]):
            return GivenInput(body)
    kept = [item for item in items[: last + 1] if item.get("role") in _INSTRUCTIONS]
    rest = body.model_copy(update={"input": [*kept, *items[last + 1 :]]})
    return GivenInput(rest, wire_id(RESPONSE, answer.turn_id) if answer.turn_id else None)


def _place(item: Item) -> tuple[UUID, int] | None:
    given = item.get("id")
    return item_place(given) if isinstance(given, str) else None


def _resolved(index: int, item: Item, messages: Mapping[UUID, Message]) -> Item:
    if item.get("type") != _REFERENCE:
        return item
    place = _place(item)
    message = messages.get(place[0]) if place else None
    for found in message_items(message) if message else ():
        if found["id"] == item["id"]:
            return found
    raise InvalidParameter(f"input[{index}].id", "There is no item with this id.")


async def _is_held(
    db: AsyncSession, caller: Caller, answer: Message, given: Sequence[Item]
) -> bool:
    """Tell whether the answer's session holds exactly these items up to the answer."""
    session = await crud.get_session(db, caller, answer.session_id)
    if answer.seq > _MOST_MESSAGES:
        return False
    held = session_items(db, session, after=None, newest_first=False, seqs=(1, answer.seq))
    sent = [item for item in given if item.get("role") not in _INSTRUCTIONS]
    try:
        return _posted(sent) == _posted([item async for item in held])
    except InvalidParameter:  # images, for example, have no form that both sides know
        return False


def _posted(items: Sequence[Item]) -> list[PostedMessage]:
    return posted_messages(read_items(items))
