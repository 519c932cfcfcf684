"""How a turn can be refused, and how it can end badly."""

from collections.abc import Iterator

from app.core.errors import AppError, ErrorKind


class SessionQueueFull(AppError):
    """Too many turns wait in this session."""

    kind = ErrorKind.TOO_MANY
    code = "session-queue-full"


class ServerBusy(AppError):
    """The server runs as many turns as it can."""

    kind = ErrorKind.UNAVAILABLE
    code = "server-busy"


class ServerDraining(AppError):
    """The server is shutting down."""

    kind = ErrorKind.UNAVAILABLE
    code = "server-draining"


class TurnCancelled(AppError):
    """The turn was cancelled."""

    kind = ErrorKind.CONFLICT
    code = "turn-cancelled"


class TurnTimeout(AppError):
    """The turn took too long."""

    kind = ErrorKind.TIMEOUT
    code = "turn-timeout"


class TurnInterrupted(AppError):
    """The server stopped before the turn was finished."""

    kind = ErrorKind.UNAVAILABLE
    code = "turn-interrupted"


class TurnLost(AppError):
    """The turn is no longer this server's to finish.

    Its session was deleted, or another server took it over.
    """

    kind = ErrorKind.CONFLICT
    code = "turn-lost"


class InternalError(AppError):
    """Something went wrong on the server.

    A bug: the log has the details under the request's id.
    """

    kind = ErrorKind.INTERNAL
    code = "internal-error"


class IdempotencyKeyReused(AppError):
    """The idempotency key was used for another request."""

    kind = ErrorKind.INVALID
    code = "idempotency-key-reused"


class EventsPruned(AppError):
    """The turn's events are not kept any more."""

    kind = ErrorKind.NOT_FOUND
    code = "events-pruned"


def is_retryable(error: AppError) -> bool:
    """Tell whether the same message may succeed when it is sent again."""
    retryable: bool | None = getattr(error, "retryable", None)
    if retryable is not None:
        return retryable
    return error.kind in {ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT}


def error_of_code(code: str, detail: str) -> AppError:
    """Return the error that a stored turn ended with."""
    for error in _leaves(AppError):
        if getattr(error, "code", None) == code:
            instance = error.__new__(error)
            AppError.__init__(instance, detail)
            return instance
    return InternalError(detail)


def _leaves(error: type[AppError]) -> Iterator[type[AppError]]:
    for child in error.__subclasses__():
        yield child
        yield from _leaves(child)


def shutting_down() -> TurnInterrupted:
    """Return the error of a turn that shutdown cut off."""
    return TurnInterrupted(
        "The server is shutting down; the turn goes on when it is back.", retry_after_seconds=1
    )
