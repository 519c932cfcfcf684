"""Errors of turns that are refused or fail.

The first line of an error's docstring is the title in the response.
"""

from collections.abc import Iterator
from uuid import UUID

from app.core.database import CommitOutcomeUnknown
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


class TurnCancellation(AppError):
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
    """The turn was deleted or taken over by another server.

    This attempt may not write any more.
    """

    kind = ErrorKind.CONFLICT
    code = "turn-lost"


class TurnStateUnknown(AppError):
    """The message is stored, but its turn cannot be looked up now."""

    kind = ErrorKind.UNAVAILABLE
    code = "turn-state-unknown"

    def __init__(self) -> None:
        super().__init__(
            "The message is stored, but the database does not answer now: look at "
            "`GET /turns/{id}`, or send the message again with the same Idempotency-Key.",
            retry_after_seconds=1,
        )


class InternalError(AppError):
    """An unexpected error occurred on the server.

    This is a bug: the log has the details under the request's id.
    """

    kind = ErrorKind.INTERNAL
    code = "internal-error"


class MessageTooLong(AppError):
    """The message does not fit the agent's context window."""

    kind = ErrorKind.INVALID
    code = "message-too-long"


class IdempotencyKeyReused(AppError):
    """The idempotency key was used for another request."""

    kind = ErrorKind.INVALID
    code = "idempotency-key-reused"


class AnswerNotKept(AppError):
    """The answer to this request is not stored.

    It was answered without a session, so that nothing but its usage was kept.
    """

    kind = ErrorKind.CONFLICT
    code = "answer-not-kept"


class ToolsNotTaken(AppError):
    """The agent has tools of its own, and takes none from a request."""

    kind = ErrorKind.INVALID
    code = "tools-not-taken"


class ToolResultUnknown(AppError):
    """A result answers no call of the message before it."""

    kind = ErrorKind.INVALID
    code = "tool-result-unknown"


class ToolCallsUnanswered(AppError):
    """A call of the message before it has no result."""

    kind = ErrorKind.INVALID
    code = "tool-calls-unanswered"


class OtherAgentAnswers(AppError):
    """The conversation is one with another agent."""

    kind = ErrorKind.INVALID
    code = "other-agent-answers"


class ConversationMoved(AppError):
    """The conversation went on meanwhile."""

    kind = ErrorKind.CONFLICT
    code = "conversation-moved"


class UnknownToolOutcome(AppError):
    """It is not known whether a tool call was done.

    The server or the connection broke while a call ran that must not be run twice.
    """

    kind = ErrorKind.CONFLICT
    code = "unknown-tool-outcome"


class OutputInvalid(AppError):
    """The model's answer does not match the schema of the answer.

    It was asked for a second time, with what is wrong. The text of its last answer is kept.
    """

    kind = ErrorKind.UPSTREAM
    code = "output-invalid"


class SpeechNotNamed(AppError):
    """Nothing says what is read aloud of an answer in JSON."""

    kind = ErrorKind.INVALID
    code = "speech-not-named"


class ToolCallNotFound(AppError):
    """There is no such tool call."""

    kind = ErrorKind.NOT_FOUND
    code = "tool-call-not-found"


class ActionAlreadyTaken(AppError):
    """Another action was taken for this call."""

    kind = ErrorKind.CONFLICT
    code = "action-already-taken"


class ActionExpired(AppError):
    """The time for this action is over."""

    kind = ErrorKind.CONFLICT
    code = "action-expired"


class ActionNotWanted(AppError):
    """The call does not wait for this action."""

    kind = ErrorKind.CONFLICT
    code = "action-not-wanted"


class TurnNotRetryable(AppError):
    """The turn has not failed, or its tools have done something."""

    kind = ErrorKind.CONFLICT
    code = "turn-not-retryable"


class EventsPruned(AppError):
    """The turn's events are not stored any more."""

    kind = ErrorKind.NOT_FOUND
    code = "events-pruned"


def unknown_outcome(call_id: UUID, name: str, cause: AppError | None = None) -> UnknownToolOutcome:
    """Return the error of a turn that stopped in the middle of a `once` call, and why."""
    detail = f"It is not known whether the call {call_id} of {name!r} was done."
    return UnknownToolOutcome(f"{detail} {cause.detail}" if cause else detail)


def is_retryable(error: AppError) -> bool:
    """Return whether the same message may succeed when it is sent again."""
    retryable: bool | None = getattr(error, "retryable", None)
    if retryable is not None:
        return retryable
    return error.kind in {ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT}


def error_of_code(code: str, detail: str) -> AppError:
    """Create the error of a stored turn from its code and detail."""
    for error in _subclasses(AppError):
        if getattr(error, "code", None) == code:
            instance = error.__new__(error)
            AppError.__init__(instance, detail)
            return instance
    return InternalError(detail)


def _subclasses(error: type[AppError]) -> Iterator[type[AppError]]:
    for child in error.__subclasses__():
        yield child
        yield from _subclasses(child)


def tool_call_not_found() -> ToolCallNotFound:
    """Create the error of a tool call that is not there, or that the caller may not see."""
    return ToolCallNotFound("There is no tool call with this id.")


def tools_not_taken() -> ToolsNotTaken:
    """Create the error of a request with tools to an agent that has its own."""
    return ToolsNotTaken("This agent has tools of its own: send the request without `tools`.")


def turn_lost() -> TurnLost:
    """Create the error of a deleted turn or superseded attempt."""
    return TurnLost("The session was deleted, or another server took the turn over.")


def acceptance_unknown(turn_id: UUID) -> CommitOutcomeUnknown:
    """Create the error of a message whose storing had no answer in time."""
    error = CommitOutcomeUnknown(
        "It is not known whether the message was stored: send it again with the same "
        "Idempotency-Key, or look at `GET /turns/{id}`; `turn_id` is its id if it was stored."
    )
    error.extensions["turn_id"] = str(turn_id)
    return error


def interrupted_by_crash() -> TurnInterrupted:
    """Return the error of a turn whose server stopped, and that is not run again."""
    return TurnInterrupted("The server stopped during this turn; send it again.")


def interrupted_by_shutdown() -> TurnInterrupted:
    """Create the error of a turn that was interrupted by shutdown."""
    return TurnInterrupted(
        "The server is shutting down; the turn continues once a server runs again.",
        retry_after_seconds=1,
    )
