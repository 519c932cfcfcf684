"""The base classes of expected errors.

Services raise subclasses of `AppError`; `http/problems.py` alone turns them into HTTP responses.
Any other exception is a bug and is answered with 500 without detail.
"""

from enum import StrEnum
from typing import Any, ClassVar

from app.core.limits import Quota


class ErrorKind(StrEnum):
    """The category of an error; HTTP, WebSocket and the CLI each map it to a code of theirs."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    GONE = "gone"
    """It was there, and is not kept."""
    NOT_ALLOWED = "not_allowed"
    """The resource exists, but does not support the method."""
    CONFLICT = "conflict"
    CHANGED = "changed"
    """It is not any more what the caller has seen."""
    MALFORMED = "malformed"
    """The body does not match its content type: broken JSON, broken multipart."""
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    """The request was not received in time."""
    UNSUPPORTED = "unsupported"
    """The content type is not supported."""
    OUT_OF_RANGE = "out_of_range"
    """The requested byte range does not exist."""
    INVALID = "invalid"
    """Well-formed, but not acceptable."""
    TOO_MANY = "too_many"
    """The caller has reached one of its limits."""
    UPSTREAM = "upstream"
    """A provider failed, or its response cannot be used."""
    UNAVAILABLE = "unavailable"
    """The server or a dependency is unavailable; the same request may succeed later."""
    INTERNAL = "internal"
    """A bug of the server."""
    TIMEOUT = "timeout"
    """A provider did not answer in time."""


class AppError(Exception):
    """Base of every expected error.

    A subclass sets `kind` and `code`; `code` is public API, so it never changes. The
    first line of its docstring is the title that clients see. `detail` is for the
    client: it holds no secret, no provider's words and no input. `extensions` are further members
    of the problem document, such as the id of the turn that failed; `quota` is the limit that was
    reached, if one was. `has_effects`: what was done before it failed is not undone, so clients are
    told not to send the request again by themselves.
    """

    kind: ClassVar[ErrorKind]
    code: ClassVar[str]

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.extensions: dict[str, Any] = {}
        self.quota: Quota | None = None
        self.has_effects = False

    @classmethod
    def title(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or cls.__name__).partition("\n")[0].rstrip(".")


class StartRefused(Exception):
    """The server cannot start; the message is a sentence that tells the operator what to do."""
