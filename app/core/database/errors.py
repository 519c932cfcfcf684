"""Translates drivers' errors which mean that the database is unavailable."""

from typing import Any, Self

from sqlalchemy import exc

from app.core.errors import AppError, ErrorKind

_UNAVAILABLE_SQLSTATES = ("08", "53", "57P", "25006", "58")
"""Connection lost, out of resources, shut down by an operator, read-only standby, disk."""
_UNAVAILABLE_SQLITE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_READONLY",
    "SQLITE_IOERR",
    "SQLITE_FULL",
    "SQLITE_CANTOPEN",
)


_NO_SUCH_TABLE = ("42P01", "42703", "3F000")
"""Undefined table, column and schema."""
_NO_SUCH_TABLE_SQLITE = ("no such table", "no such column", "has no column named")


class StorageUnavailable(AppError):
    """The database is unavailable."""

    kind = ErrorKind.UNAVAILABLE
    code = "storage-unavailable"

    def __init__(
        self, detail: str = "The database did not answer. Nothing was stored; try again."
    ) -> None:
        super().__init__(detail, retry_after_seconds=1)


class CommitOutcomeUnknown(StorageUnavailable):
    """It is not known whether the request was stored.

    The connection was lost after COMMIT was sent and before its answer came.
    """

    code = "storage-outcome-unknown"

    def __init__(
        self,
        detail: str = "The connection to the database was lost while it stored the request. It is "
        "not known whether it was stored: look, or send it again with the same Idempotency-Key.",
        result: Any = None,  # noqa: ANN401  # whatever the transaction returned
    ) -> None:
        super().__init__(detail)
        self.result = result
        """What the transaction script returned: true if the COMMIT took effect."""


def is_missing_table(error: BaseException) -> bool:
    """Tell whether a statement failed because the database is not migrated."""
    driver_error: Any = getattr(error, "orig", None) or error
    state = getattr(driver_error, "sqlstate", None)
    is_sqlite = getattr(driver_error, "sqlite_errorname", None) == "SQLITE_ERROR"
    return state in _NO_SUCH_TABLE or (
        is_sqlite and any(words in str(driver_error) for words in _NO_SUCH_TABLE_SQLITE)
    )


class storage_errors:  # noqa: N801  # a context manager, used as a function
    """Translate "database unavailable" errors of any driver into `StorageUnavailable`."""

    __slots__ = ("is_committing",)

    def __init__(self) -> None:
        self.is_committing = False
        """Set when COMMIT is sent next: from then on a lost connection leaves it unknown."""

    def __enter__(self) -> Self:
        """Begin to watch; nothing is opened."""
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Raise `StorageUnavailable` in place of a driver's error that means it."""
        if error is not None and is_unavailable(error):
            raise (CommitOutcomeUnknown if self.is_committing else StorageUnavailable) from error


def is_unavailable(error: BaseException) -> bool:
    """Return whether a driver's error means that the database cannot be reached."""
    if isinstance(error, exc.DBAPIError):
        driver_error: Any = error.orig
        return (
            error.connection_invalidated
            or isinstance(error, exc.InterfaceError)
            or isinstance(driver_error, (OSError, TimeoutError))
            or _is_unavailable_driver(driver_error)
        )
    # Transaction scripts call the drivers directly, so their errors have no SQLAlchemy wrapper.
    return isinstance(error, (OSError, TimeoutError, exc.TimeoutError)) or _is_unavailable_driver(
        error
    )


def _is_unavailable_driver(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None)
    sqlite_name = getattr(error, "sqlite_errorname", None)
    return (
        (isinstance(state, str) and state.startswith(_UNAVAILABLE_SQLSTATES))
        or (isinstance(sqlite_name, str) and sqlite_name.startswith(_UNAVAILABLE_SQLITE))
        or (type(error).__module__.startswith("asyncpg") and state is None)
    )
