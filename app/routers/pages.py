"""Lists in pages: an opaque cursor, and where the next page is in the `Link` header (RFC 8288)."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar
from uuid import UUID

from fastapi import Query, Request, Response

from app.core.errors import AppError, ErrorKind

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
Cursor = Annotated[
    str | None, Query(max_length=64, description="From the `Link` header of the page before.")
]
_LARGEST_INTEGER = 2**31 - 1


class CursorInvalid(AppError):
    """The cursor is not one of ours."""

    kind = ErrorKind.INVALID
    code = "cursor-invalid"


def cursor_id(cursor: str | None) -> UUID | None:
    """Read a cursor that stands on an id. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    try:
        return UUID(bytes=_decode(cursor))
    except ValueError:
        raise _invalid() from None


def cursor_number(cursor: str | None) -> int | None:
    """Read a cursor that stands on a number. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    number = int.from_bytes(_decode(cursor)[:8], "big")
    if number > _LARGEST_INTEGER:
        raise _invalid()
    return number


def cursor_text(cursor: str | None) -> str | None:
    """Read a cursor that stands on a short text. Raises `CursorInvalid`."""
    if cursor is None:
        return None
    text = _decode(cursor).decode("ascii", "replace")
    if not text.isalnum():
        raise _invalid()
    return text


def link_next(
    request: Request,
    response: Response,
    rows: Sequence[T],
    limit: int,
    position: Callable[[T], UUID | int | str],
) -> Sequence[T]:
    """Cut the row that was read beyond `limit`, and say where the page after this one is."""
    if len(rows) <= limit:
        return rows
    page = rows[:limit]
    at = position(page[-1])
    match at:
        case UUID():
            raw = at.bytes
        case int():
            raw = at.to_bytes(8, "big")
        case str():
            raw = at.encode()
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
    return CursorInvalid("Take the cursor from the `Link` header of the page before, unchanged.")
