"""What a client of a line may have done wrong, and the limits of lines."""

from app.core.errors import AppError, ErrorKind


class LiveInputRefused(AppError):
    """An event of the client cannot be served as it is; the line stays open.

    `reason` is the code that clients of OpenAI's Realtime API know, `param` the field.
    """

    kind = ErrorKind.MALFORMED
    code = "live-input-refused"

    def __init__(self, reason: str, detail: str, param: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.param = param


class TooManyLines(AppError):
    """The key has as many lines open as it may."""

    kind = ErrorKind.TOO_MANY
    code = "too-many-lines"


class LinesFull(AppError):
    """This server has as many lines open as it can serve."""

    kind = ErrorKind.UNAVAILABLE
    code = "lines-full"


class ActionNeeded(AppError):
    """The turn waits until somebody acts: its tool must be approved, or asks a question."""

    kind = ErrorKind.CONFLICT
    code = "action-needed"
