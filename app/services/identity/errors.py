"""What can be wrong with keys, workspaces and those who vouch for users."""

from app.core.errors import AppError, ErrorKind


class KeyNotFound(AppError):
    """No such key."""

    kind = ErrorKind.NOT_FOUND
    code = "key-not-found"


class KeyRevoked(AppError):
    """The key is revoked."""

    kind = ErrorKind.CONFLICT
    code = "key-revoked"


class WorkspaceNotFound(AppError):
    """No such workspace."""

    kind = ErrorKind.NOT_FOUND
    code = "workspace-not-found"


class CannotGrant(AppError):
    """Nobody gives more than they have."""

    kind = ErrorKind.FORBIDDEN
    code = "cannot-grant"


class IdentityUnavailable(AppError):
    """The token cannot be checked now."""

    kind = ErrorKind.UNAVAILABLE
    code = "identity-unavailable"
