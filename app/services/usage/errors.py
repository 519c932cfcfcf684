"""Errors of exceeded limits.

The first line of an error's docstring is the title in the response.
"""

from app.core.errors import AppError, ErrorKind


class RateLimited(AppError):
    """Too many requests."""

    kind = ErrorKind.TOO_MANY
    code = "rate-limited"


class TooManyTurns(AppError):
    """Too many turns at once."""

    kind = ErrorKind.TOO_MANY
    code = "too-many-turns"


class UploadsExhausted(AppError):
    """The daily limit of recordings is used up."""

    kind = ErrorKind.TOO_MANY
    code = "uploads-exhausted"


class BudgetExhausted(AppError):
    """The daily budget is used up."""

    kind = ErrorKind.TOO_MANY
    code = "budget-exhausted"


class StorageFull(AppError):
    """The workspace stores as much as it may."""

    kind = ErrorKind.TOO_MANY
    code = "storage-full"


class UsageTooDetailed(AppError):
    """The report would have too many rows."""

    kind = ErrorKind.INVALID
    code = "usage-too-detailed"
