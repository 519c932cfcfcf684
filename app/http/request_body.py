"""Reads a request's body: bounded in size and time, and only of the media type that is served."""

from http import HTTPStatus
from typing import TypeVar

import anyio
import orjson
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

from app.core.errors import AppError
from app.http.problems import (
    BodyTooLarge,
    MalformedBody,
    RequestTimeout,
    UnsupportedMediaType,
    invalid_json,
    invalid_request,
)
from app.http.protocol import BODY_IS_COMPLETE
from app.schemas.base import MOST_LEVELS, has_nul, levels_of
from app.services.voice import UPLOAD_BYTES_LIMIT

Shape = TypeVar("Shape", bound=BaseModel)

JSON_BYTES = 12 * 200_000 + 64 * 1024
"""The longest message with every character written as two `\\uXXXX` escapes, and other fields."""
MESSAGE_BYTES = 28_000_000
"""A message with one of the largest images in it."""
_NUL_FAULT = {
    "type": "value_error",
    "loc": ("body",),
    "msg": "Value error, must not contain the NUL character",
}
_DEEP_FAULT = _NUL_FAULT | {"msg": f"Value error, must have at most {MOST_LEVELS} levels"}
_MOST_VALUES = 250_000
"""Of a body that is larger than JSON is elsewhere; a message has a few, and its longest text."""
FORM_BYTES = UPLOAD_BYTES_LIMIT + 64 * 1024
"""An upload with its other fields and the lines between them."""
JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"

_GRACE_SECONDS = 10.0
_BYTES_PER_SECOND = 4096
"""The average rate that a body must reach once the grace period is over."""
_LONGEST_SECONDS = 300.0


def require_media_type(content_type: str, media_type: str) -> None:
    """Raise `UnsupportedMediaType` unless the header's value names `media_type`."""
    if content_type.partition(";")[0].strip().lower() != media_type:
        raise UnsupportedMediaType(f"Send the body with `Content-Type: {media_type}`.")


def require_announced_length(content_length: str, limit_bytes: int) -> None:
    """Raise `BodyTooLarge` where the header announces more than `limit_bytes`."""
    if content_length.isdecimal() and int(content_length[:20]) > limit_bytes:
        raise BodyTooLarge("The body is larger than this path takes.")


def bounded_receive(limit_bytes: int, receive: Receive) -> Receive:
    """Return a `receive` that ends a body which is too large or comes too slowly.

    What `Content-Length` announces need not be true. It raises Starlette's `HTTPException`, the one
    type of error that FastAPI passes on while it reads a body.
    """
    began_at = anyio.current_time()
    received_bytes = 0
    is_complete = False

    async def receive_counting() -> Message:
        nonlocal received_bytes, is_complete
        if is_complete:  # only the client's disconnection can follow
            return await receive()
        earned_seconds = received_bytes / _BYTES_PER_SECOND
        give_up_at = began_at + min(_LONGEST_SECONDS, _GRACE_SECONDS + earned_seconds)
        message = None
        with anyio.move_on_at(give_up_at):
            message = await receive()
        if message is None:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT)
        received_bytes += len(message.get("body", b""))
        if received_bytes > limit_bytes:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        is_complete = not message.get("more_body", False)
        return message

    return receive_counting


def require_few_values(body: bytes) -> None:
    """Raise `BodyTooLarge` for a large body of many values, which would take long to be parsed."""
    if len(body) > JSON_BYTES and sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise BodyTooLarge("The body has too many values.")


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """Return the whole body.

    Raises `BodyTooLarge`, `RequestTimeout`, and `MalformedBody` where it breaks off.
    """
    if not scope["state"].get(BODY_IS_COMPLETE):  # else it is in memory, within uvicorn's limit
        receive = bounded_receive(limit_bytes, receive)
    pieces: list[bytes] = []
    size_bytes = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise MalformedBody("The body broke off.")
            pieces.append(message.get("body", b""))
            size_bytes += len(pieces[-1])
            if size_bytes > limit_bytes:
                raise BodyTooLarge("The body is larger than this path takes.")
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except HTTPException as error:
        raise body_error(error) from None


def body_error(error: HTTPException) -> AppError:
    """Return what `bounded_receive` raised as an error of ours."""
    if error.status_code == HTTPStatus.REQUEST_TIMEOUT:
        return RequestTimeout("The body did not come in time; nothing was stored.")
    return BodyTooLarge("The body is larger than this path takes.")


def parse_json_body(body: bytes, shape: type[Shape]) -> Shape:
    """Read a JSON body of the given shape.

    orjson refuses NaN, infinity and lone surrogates. What cannot be stored is refused here: NUL,
    and JSON so deep that nothing writes it. Raises `MalformedBody`
    and `RequestInvalid`, as FastAPI's endpoints answer them.
    """
    if not body:
        missing = {"type": "missing", "loc": ("body",), "msg": "Field required"}
        raise invalid_request([missing])
    try:
        value = orjson.loads(body)
        if body.count(b"[") + body.count(b"{") > MOST_LEVELS < levels_of(value):
            raise invalid_request([_DEEP_FAULT])
        valid = shape.model_validate(value)
    except orjson.JSONDecodeError as error:
        raise invalid_json(error.pos) from None
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        raise invalid_request(
            [{**fault, "loc": ("body", *fault["loc"])} for fault in faults],
            tuple(shape.model_fields),
        ) from None
    if has_nul(body):
        raise invalid_request([_NUL_FAULT])
    return valid
