"""What can be wrong with agents, sessions, messages and turns that a caller names."""

from app.core.errors import AppError, ErrorKind


class AgentNotFound(AppError):
    """No such agent."""

    kind = ErrorKind.NOT_FOUND
    code = "agent-not-found"


class AgentArchived(AppError):
    """The agent is archived."""

    kind = ErrorKind.CONFLICT
    code = "agent-archived"


class VersionNotFound(AppError):
    """No such version of the agent."""

    kind = ErrorKind.NOT_FOUND
    code = "version-not-found"


class SessionNotFound(AppError):
    """No such session."""

    kind = ErrorKind.NOT_FOUND
    code = "session-not-found"


class SessionBusy(AppError):
    """A turn of the session is not finished."""

    kind = ErrorKind.CONFLICT
    code = "session-busy"


class MessageNotFound(AppError):
    """No such message."""

    kind = ErrorKind.NOT_FOUND
    code = "message-not-found"


class TurnNotFound(AppError):
    """No such turn."""

    kind = ErrorKind.NOT_FOUND
    code = "turn-not-found"
