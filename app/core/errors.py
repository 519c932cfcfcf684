"""The errors a caller can cause or must expect.

Services raise these; `routers/problems.py` is the one place that turns them into
HTTP. Anything that is not an `AppError` is a bug and answers 500 without detail.
"""

from enum import StrEnum
from typing import ClassVar

from app.core.limits import Quota


class ErrorKind(StrEnum):
    """What the caller can do about it; each edge (HTTP, WebSocket, CLI) has its own code."""

    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    NOT_ALLOWED = "not_allowed"
    """The resource exists, the method does not."""
    CONFLICT = "conflict"
    MALFORMED = "malformed"
    """The bytes are not what their type says: broken JSON, broken multipart."""
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    """The request did not come in time."""
    UNSUPPORTED = "unsupported"
    """The type of the content is one we do not take."""
    OUT_OF_RANGE = "out_of_range"
    """There is no such part of what was asked for."""
    INVALID = "invalid"
    """Well-formed, but not acceptable."""
    TOO_MANY = "too_many"
    """The caller is over a limit of its own."""
    UPSTREAM = "upstream"
    """A provider answered, and the answer is of no use."""
    UNAVAILABLE = "unavailable"
    """We, or what we need, cannot serve now; the same request may succeed later."""
    INTERNAL = "internal"
    """A bug of ours."""
    TIMEOUT = "timeout"
    """A provider did not answer in time."""


class AppError(Exception):
    """Base of every expected error.

    A subclass sets `kind` and `code`; `code` is public API, so it never changes. The
    first line of its docstring is the title that clients see. `detail` is for the
    client: it holds no secret, no provider's words and no input. `facts` are further members of
    the problem document, such as the id of the turn that failed; `quota` is the limit that was
    reached, if one was.
    """

    kind: ClassVar[ErrorKind]
    code: ClassVar[str]

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
        self.facts: dict[str, str] = {}
        self.quota: Quota | None = None

    @classmethod
    def title(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or cls.__name__).partition("\n")[0].rstrip(".")


class StartRefused(Exception):  # as the others
    """The server cannot start; the text is a sentence for its operator that says what to do."""
