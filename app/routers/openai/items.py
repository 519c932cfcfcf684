"""Messages as items of OpenAI's API: a message, a call, its output, or reasoning."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Message, MessageStatus, Role, Session
from app.routers.openai.ids import item_id, item_place
from app.routers.openai.responses_frames import (
    ResponseEvents,
    ResponseHead,
    answer_values,
)
from app.services import crud
from app.services.turns.parts import (
    FilePart,
    ImagePart,
    Part,
    TextPart,
    ToolResultPart,
    decode_parts,
)

_PAGE_MESSAGES = 100
Item = dict[str, Any]


def message_items(message: Message) -> list[Item]:
    """Return a message as items; an answer that is not complete yet has none."""
    if message.status is MessageStatus.IN_PROGRESS:
        return []
    parts = decode_parts(message.parts) if message.parts else None
    status = "completed" if message.status is MessageStatus.COMPLETED else "incomplete"
    if message.role is Role.ASSISTANT:
        is_typed = message.output is not None
        events = ResponseEvents(ResponseHead(message.id, {}), shows_calls=True)
        events.encode(answer_values(message.content, parts, is_typed=is_typed))
        return events.items(status)
    items: list[Item] = []
    for part in parts or ():
        if isinstance(part, ToolResultPart):
            items.append({
                "type": "function_call_output",
                "id": item_id("fco", message.id, len(items)),
                "call_id": part.call_id,
                "output": part.content,
                "status": "completed",
            })  # fmt: skip
    content = _content(parts or [TextPart(message.content)])
    if content:
        items.append({
            "type": "message",
            "id": item_id("msg", message.id, len(items)),
            "status": status,
            "role": message.role.value,
            "content": content,
        })  # fmt: skip
    return items


def _content(parts: Sequence[Part]) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, TextPart) and part.text:
            content.append({"type": "input_text", "text": part.text})
        elif isinstance(part, ImagePart):
            image = {"detail": "auto", "file_id": part.file_id, "image_url": None}
            content.append({"type": "input_image"} | image)
        elif isinstance(part, FilePart):
            content.append({"type": "input_file", "file_id": part.file_id, "filename": part.name})
    return content


async def session_items(
    db: AsyncSession,
    session: Session,
    *,
    after: str | None,
    newest_first: bool,
    seqs: tuple[int, int] | None = None,
) -> AsyncIterator[Item]:
    """Yield the items of a session behind the item `after`, or of its messages in `seqs`.

    Raises `MessageNotFound` where `after` is none of its items.
    """
    first, last = seqs or (1, session.last_seq)
    after_seq, before_seq = first - 1, last + 1
    is_behind = after is None
    if after is not None:
        seq = (await find_message(db, session, after)).seq
        after_seq, before_seq = (after_seq, seq + 1) if newest_first else (seq - 1, before_seq)
    while True:
        page = await crud.list_history(
            db,
            session,
            after_seq=after_seq,
            before_seq=before_seq,
            newest_first=newest_first,
            limit=_PAGE_MESSAGES,
        )
        for message, _ in page:
            items = message_items(message)
            for item in reversed(items) if newest_first else items:
                if is_behind:
                    yield item
                is_behind = is_behind or item["id"] == after
        if len(page) < _PAGE_MESSAGES:
            if not is_behind:
                raise item_not_found()
            return
        seq = page[-1][0].seq
        after_seq, before_seq = (after_seq, seq) if newest_first else (seq, before_seq)


async def item_page(items: AsyncIterator[Item], limit: int) -> dict[str, Any]:
    """Return one page of a list of items."""
    page: list[Item] = []
    async for item in items:
        page.append(item)
        if len(page) > limit:
            break
    data = page[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(page) > limit,
    }


async def find_message(db: AsyncSession, session: Session, item: str) -> Message:
    """Return the message of an item of the session. Raises `MessageNotFound`."""
    place = item_place(item)
    message = await crud.find_message(db, session, place[0]) if place else None
    if message is None or item not in _ids(message):
        raise item_not_found()
    return message


def _ids(message: Message) -> set[str]:
    return {item["id"] for item in message_items(message)}


def item_not_found() -> crud.MessageNotFound:
    """Create the error of an item that is not there."""
    return crud.MessageNotFound("There is no item with this id in this conversation.")
