"""Images and files in the messages of a request: data URLs, checked as uploads are."""

import binascii
import re
from base64 import b64decode
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from anyio import to_thread

from app.core.database import Database
from app.core.security import Caller
from app.http.openai_errors import InvalidParameter
from app.routers.agent_names import agent_of
from app.services import crud
from app.services.files.errors import (
    FileTooLarge,
    FileTooLong,
    FileUnreadable,
    ImagesNotSupported,
)
from app.services.files.library import FileDraft
from app.services.prompt_lines import PromptContent, PromptImage, PromptLine, PromptMessage
from app.services.turns.context.attachments import document_text, draft_part
from app.services.turns.execution.message_input import InlineFile, MessageInput
from app.services.turns.parts import PARAGRAPH, AttachedLine, ShownPart, TextPart

_DATA_URL = re.compile(r"data:[a-z0-9/+.;=-]{0,200}?;base64,", re.IGNORECASE)
_VALUE = "unsupported_value"


class GivenFile(NamedTuple):
    """A file of a request, before it is checked."""

    place: str
    data_url: str
    name: str
    is_image: bool


class GivenLine(NamedTuple):
    """A `PromptLine` of a user with files that are not checked yet."""

    role: str
    content: str
    """The texts alone."""
    pieces: tuple[str | GivenFile, ...]


def given_file(part: dict[str, Any], place: str) -> GivenFile | None:
    """Return the file of a message's part; `None` where it is none. Raises `InvalidParameter`."""
    kind = part.get("type")
    if kind in {"image_url", "input_image"}:
        url = part.get("image_url")
        if isinstance(url, dict):
            url = cast("dict[str, Any]", url).get("url")
        return GivenFile(place, _data_url(url, place), "image", is_image=True)
    if kind in {"file", "input_file"}:
        inner: Any = part.get("file") if kind == "file" else part
        fields = cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
        given: Any = fields.get("filename")
        name = given if isinstance(given, str) else "file"
        return GivenFile(place, _data_url(fields.get("file_data"), place), name, is_image=False)
    return None


def _data_url(given: object, place: str) -> str:
    if not isinstance(given, str) or not _DATA_URL.match(given):
        raise InvalidParameter(
            place, "Images and files are taken as data URLs (`data:image/png;base64,...`).", _VALUE
        )
    return given


async def checked_lines(
    state: dict[str, Any],
    caller: Caller,
    model: str,
    lines: Sequence[PromptLine],
    *,
    is_stored: bool,
) -> tuple[PromptLine, ...]:
    """Return lines with their files; stored for a day if no turn uses them, or as they are.

    Raises `InvalidParameter`, `ImagesNotSupported`, `FileUnreadable`, `FileTooLarge`,
    `FileTooLong`, `StorageFull`, and what starting a turn does.
    """
    files = [
        piece
        for line in lines
        if isinstance(line, GivenLine)
        for piece in line.pieces
        if isinstance(piece, GivenFile)
    ]
    if not files:
        return tuple(lines)
    database: Database = state["database"]
    message_input: MessageInput = state["message_input"]
    async with database.reading() as db:
        agent = await crud.find_agent(db, caller.workspace_id, agent_of(model))
    inline = [InlineFile(file.name, await _decoded(file), file.is_image) for file in files]
    try:
        drafts = await message_input.check_inline(caller, inline, vision=agent.vision)
    except (FileTooLarge, FileTooLong, FileUnreadable, ImagesNotSupported) as error:
        error.extensions["param"] = files[0].place
        raise
    if is_stored:
        await message_input.store_inline(drafts)
    found = iter(drafts)
    make = _stored_line if is_stored else _shown_line
    checked: list[PromptLine] = []
    for line in lines:
        if isinstance(line, GivenLine):
            pieces = [next(found) if isinstance(p, GivenFile) else p for p in line.pieces]
            checked.append(make(line, pieces))
        else:
            checked.append(line)
    return tuple(checked)


def _stored_line(line: GivenLine, pieces: Sequence[str | FileDraft]) -> PromptLine:
    parts: list[ShownPart] = [
        TextPart(piece) if isinstance(piece, str) else draft_part(piece) for piece in pieces
    ]
    return AttachedLine(line.role, line.content, tuple(parts))


def _shown_line(line: GivenLine, pieces: Sequence[str | FileDraft]) -> PromptLine:
    shown = tuple(piece if isinstance(piece, str) else _shown(piece) for piece in pieces)
    content = PARAGRAPH.join(piece for piece in shown if isinstance(piece, str))
    if all(isinstance(piece, str) for piece in shown):
        return PromptMessage(line.role, content)
    return PromptContent(line.role, content, shown)


def _shown(draft: FileDraft) -> str | PromptImage:
    if draft.text is None:
        return PromptImage(draft.media_type, draft.data)
    return document_text(draft.name, draft.text)


async def _decoded(file: GivenFile) -> bytes:
    encoded = file.data_url.partition(",")[2]
    try:
        return await to_thread.run_sync(lambda: b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        raise InvalidParameter(file.place, "Its data must be base64.") from None
