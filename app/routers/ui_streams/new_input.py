"""What is new in a request of a user interface, which brings its whole conversation each time."""

import re
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from app.core.value_objects import value_object
from app.http.message_parts import given_parts
from app.http.problems import RequestInvalid, invalid_request
from app.schemas.files import InputPart, InputParts
from app.schemas.tool_calls import ToolCallResolve
from app.services.turns.execution.message_input import GivenPart
from app.services.turns.parts import ToolResultPart

_PARTS: TypeAdapter[list[InputPart]] = TypeAdapter(InputParts)
_FILE_URL = re.compile(r"(?:.*/)?files/([0-9a-fA-F-]{36})(?:/content)?")


@value_object(frozen=True, slots=True)
class NewInput:
    """What a request adds to its conversation: a message, or actions on calls of tools."""

    messages: Sequence[Sequence[dict[str, Any]]] = ()
    """The parts of each user message behind the last answer, as the native API has them."""
    actions: Sequence[tuple[UUID, ToolCallResolve]] = ()
    results: Sequence[ToolResultPart] = ()
    """Of tools that an earlier request brought itself."""
    answer_ids: Sequence[UUID] = ()
    """The answers that the client shows before them, the newest first."""
    rewinds: bool = False
    """True where the conversation goes on behind the newest of these, whatever came after it."""

    def texts(self) -> list[str]:
        """Return the text of each message."""
        return ["\n\n".join(part.get("text", "") for part in each) for each in self.messages]


async def read_parts(messages: Sequence[Sequence[dict[str, Any]]]) -> Sequence[GivenPart]:
    """Return the parts of messages as one message. Raises `RequestInvalid`."""
    parts = [part for message in messages for part in message]
    try:
        checked = _PARTS.validate_python(parts)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise invalid_message(f"A message has a part that is not valid: {fault['msg']}.") from None
    return await given_parts(checked)


def text_part(text: str) -> dict[str, Any]:
    """Return a text as a part of a message."""
    return {"type": "text", "text": text}


def file_part(url: str, media_type: str) -> dict[str, Any]:
    """Return a file as a part of a message: an image by a data URL, or a file of this server.

    Raises `RequestInvalid`.
    """
    is_image = media_type.startswith("image/")
    if found := _FILE_URL.fullmatch(url):
        return {"type": "image" if is_image else "file", "file_id": found[1]}
    if is_image and url.startswith("data:"):
        return {"type": "image", "data": url}
    raise invalid_message(
        "Files are images by a data URL, or files that were sent to `POST /files`, with the URL "
        "`/files/<id>`."
    )


def invalid_message(problem: str) -> RequestInvalid:
    """Return the error of messages that are not taken; `problem` is a sentence."""
    fault = {"type": "value_error", "loc": ("body", "messages"), "msg": problem}
    error = invalid_request([fault])
    error.detail = problem
    return error


def call_id_of(value: object) -> UUID | None:
    """Return the id of a tool call of this server; `None` where it is none."""
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def action(**fields: Any) -> ToolCallResolve:  # checked here
    """Return an action on a tool call. Raises `RequestInvalid`."""
    try:
        return ToolCallResolve.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise invalid_message(f"The answer to a tool call is not valid: {fault['msg']}.") from None
