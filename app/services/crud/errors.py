"""Errors of agents, sessions, messages and turns.

The first line of an error's docstring is the title in the response.
"""

from app.core.errors import AppError, ErrorKind


class AgentNotFound(AppError):
    """The agent does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "agent-not-found"


class AgentArchived(AppError):
    """The agent is archived."""

    kind = ErrorKind.CONFLICT
    code = "agent-archived"


class VersionChanged(AppError):
    """The agent has another version than the caller has seen."""

    kind = ErrorKind.CHANGED
    code = "version-changed"


class VersionNotFound(AppError):
    """The agent has no such version."""

    kind = ErrorKind.NOT_FOUND
    code = "version-not-found"


class SessionNotFound(AppError):
    """The session does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "session-not-found"


class SessionBusy(AppError):
    """Another turn of the session is not finished."""

    kind = ErrorKind.CONFLICT
    code = "session-busy"


class MessageNotFound(AppError):
    """The message does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "message-not-found"


class ResponseNotFound(AppError):
    """The response does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "response-not-found"


class TurnNotFound(AppError):
    """The turn does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "turn-not-found"


class SearchInvalid(AppError):
    """The search has too many words."""

    kind = ErrorKind.INVALID
    code = "search-invalid"


class UserNotFound(AppError):
    """Nothing of this end user is stored."""

    kind = ErrorKind.NOT_FOUND
    code = "user-not-found"


def session_not_found() -> SessionNotFound:
    """Create the error of a session that the caller cannot see."""
    return SessionNotFound(
        "No session with this id exists in this workspace, or it belongs to another user."
    )


def turn_not_found() -> TurnNotFound:
    """Create the error of a turn that the caller cannot see."""
    return TurnNotFound(
        "No turn with this id exists in this workspace, or it belongs to another user."
    )
