"""The parts of a message, from the wire to what the turn engine takes."""

import binascii
import re
from base64 import b64decode
from collections.abc import Sequence

from anyio import to_thread

from app.http.problems import invalid_request
from app.schemas.files import ImageInput, InputPart, TextInput
from app.services.turns.execution.message_input import FileReference, GivenPart, InlineImage
from app.services.turns.parts import TextPart

_DATA_URL = re.compile(r"data:[a-z0-9/+.-]{1,100};base64,", re.IGNORECASE)
_AT_ONCE_CHARACTERS = 1 << 20


async def given_parts(parts: Sequence[InputPart]) -> list[GivenPart]:
    """Return the parts, with the bytes of inline images. Raises `RequestInvalid`."""
    return [await _given(part, place) for place, part in enumerate(parts)]


async def _given(part: InputPart, place: int) -> GivenPart:
    if isinstance(part, TextInput):
        return TextPart(part.text)
    if isinstance(part, ImageInput):
        if part.file_id:
            return FileReference(part.file_id, is_image=True)
        return InlineImage(await _decoded(part.data or "", place))
    return FileReference(part.file_id, is_image=False)


async def _decoded(data: str, place: int) -> bytes:
    if prefix := _DATA_URL.match(data):
        data = data[prefix.end() :]
    try:
        if len(data) <= _AT_ONCE_CHARACTERS:
            return b64decode(data, validate=True)
        return await to_thread.run_sync(lambda: b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        loc = ("body", "content", place, "data")
        fault = {"type": "value_error", "loc": loc, "msg": "must be base64"}
        raise invalid_request([fault]) from None
