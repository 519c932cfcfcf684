"""Checks that the database is at the migration revision that this version needs."""

import time

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.database.database import Database
from app.core.database.statements import SCHEMA
from app.core.errors import AppError, ErrorKind

REVISION = "0023"
"""The newest migration; a test compares it with Alembic's head revision."""

_RECHECK_SECONDS = 1.0


class DatabaseNotMigrated(AppError):
    """The database is not at the revision that this version needs."""

    kind = ErrorKind.UNAVAILABLE
    code = "database-not-migrated"


async def current_revision(database: Database) -> str | None:
    """Return the database's revision, or `None` if it has none. Raises `StorageUnavailable`."""
    schema = "" if database.is_sqlite else f"{SCHEMA}."
    try:
        async with database.reading() as db:
            return await db.scalar(text(f"SELECT version_num FROM {schema}alembic_version"))  # noqa: S608
    except DBAPIError:
        return None


class RevisionCheck:
    """Refuses requests until the revision matches; after that it queries the database no more."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_current = False
        self._checked_at = -_RECHECK_SECONDS
        self._revision: str | None = None

    async def require(self) -> None:
        """Return at once if the revision matched before; otherwise query it once a second.

        Raises `DatabaseNotMigrated` or `StorageUnavailable`.
        """
        if self._is_current:
            return
        if time.monotonic() - self._checked_at < _RECHECK_SECONDS:
            raise self._refusal()
        await self.check_now()

    async def check_now(self) -> None:
        """Query the revision. Raises `DatabaseNotMigrated` or `StorageUnavailable`."""
        self._revision = await current_revision(self._database)
        self._checked_at = time.monotonic()
        self._is_current = self._revision == REVISION
        if not self._is_current:
            raise self._refusal()

    def _refusal(self) -> DatabaseNotMigrated:
        state = f"at revision {self._revision}" if self._revision else "empty"
        return DatabaseNotMigrated(
            f"The database is {state}, and this version needs {REVISION}: "
            "run `agent-platform migrate` (or `alembic upgrade head`).",
            retry_after_seconds=5,
        )
