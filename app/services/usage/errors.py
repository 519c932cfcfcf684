"""Limits that were reached."""

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
    """The day's minutes of recordings are used up."""

    kind = ErrorKind.TOO_MANY
    code = "uploads-exhausted"


class BudgetExhausted(AppError):
    """The day's budget is used up."""

    kind = ErrorKind.TOO_MANY
    code = "budget-exhausted"


class UsageTooDetailed(AppError):
    """The report would have too many rows."""

    kind = ErrorKind.INVALID
    code = "usage-too-detailed"
