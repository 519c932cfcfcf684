"""Errors of keys, workspaces and identity providers.

The first line of an error's docstring is the title in the response.
"""

from app.core.errors import AppError, ErrorKind


class KeyNotFound(AppError):
    """The key does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "key-not-found"


class KeyRevoked(AppError):
    """The key is revoked."""

    kind = ErrorKind.CONFLICT
    code = "key-revoked"


class WorkspaceNotFound(AppError):
    """The workspace does not exist."""

    kind = ErrorKind.NOT_FOUND
    code = "workspace-not-found"


class CannotGrant(AppError):
    """A key cannot grant more than it has."""

    kind = ErrorKind.FORBIDDEN
    code = "cannot-grant"


class IdentityUnavailable(AppError):
    """The token cannot be verified now."""

    kind = ErrorKind.UNAVAILABLE
    code = "identity-unavailable"
