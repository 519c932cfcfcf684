"""Pagination with opaque cursors; the `Link` header (RFC 8288) has the URL of the next page."""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Query, Request, Response

from app.core.errors import AppError, ErrorKind

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100, description="The most items in one page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=64, description="The cursor from the `Link` header of the previous page."),
]
_LARGEST_INTEGER = 2**31 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CursorInvalid(AppError):
    """The cursor is not valid."""

    kind = ErrorKind.INVALID
    code = "cursor-invalid"


def cursor_id(cursor: str | None) -> UUID | None:
    """Decode a cursor that holds an id. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    try:
        return UUID(bytes=_decode(cursor))
    except ValueError:
        raise _invalid() from None


def cursor_number(cursor: str | None) -> int | None:
    """Decode a cursor that holds a number. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    number = int.from_bytes(_decode(cursor)[:8], "big")
    if number > _LARGEST_INTEGER:
        raise _invalid()
    return number


def cursor_text(cursor: str | None) -> str | None:
    """Decode a cursor that holds letters, digits and underscores. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    text = _decode(cursor).decode("ascii", "replace")
    if not text.replace("_", "0").isalnum():
        raise _invalid()
    return text


def cursor_moment(cursor: str | None) -> tuple[datetime, UUID] | None:
    """Decode a cursor that holds a time and an id. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    raw = _decode(cursor)
    microseconds = int.from_bytes(raw[:8], "big")
    try:
        return _EPOCH + timedelta(microseconds=microseconds), UUID(bytes=raw[8:])
    except (OverflowError, ValueError):
        raise _invalid() from None


def link_next(
    request: Request,
    response: Response,
    rows: Sequence[T],
    limit: int,
    position: Callable[[T], UUID | int | str | tuple[datetime, UUID]],
) -> Sequence[T]:
    """Return at most `limit` rows; if there are more, set the `Link` header to the next page.

    `rows` are up to `limit + 1`; `position` returns the value of a row that its cursor holds.
    """
    if len(rows) <= limit:
        return rows
    page = rows[:limit]
    last = position(page[-1])
    match last:
        case UUID():
            raw = last.bytes
        case int():
            raw = last.to_bytes(8, "big")
        case str():
            raw = last.encode()
        case (moment, row_id):
            raw = ((moment - _EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big") + row_id.bytes
    cursor = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    url = request.url.include_query_params(cursor=cursor)
    response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    return page


def _decode(cursor: str) -> bytes:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _invalid() from None


def _invalid() -> CursorInvalid:
    return CursorInvalid("Use the cursor from the `Link` header of the previous page, unchanged.")
