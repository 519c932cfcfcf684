"""Whether the database has the tables that this version of the program needs."""

import time

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.database import SCHEMA, Database
from app.core.errors import AppError, ErrorKind

REVISION = "0007"
"""The newest migration; a test compares it with Alembic's own idea of the head."""

_RECHECK_SECONDS = 1.0


class DatabaseNotMigrated(AppError):
    """The database is not at this version's revision."""

    kind = ErrorKind.UNAVAILABLE
    code = "database-not-migrated"


async def current_revision(database: Database) -> str | None:
    """Return the database's revision; `None` where there is none. Raises `StorageUnavailable`."""
    schema = "" if database.is_sqlite else f"{SCHEMA}."
    try:
        async with database.reading() as db:
            return await db.scalar(text(f"SELECT version_num FROM {schema}alembic_version"))  # noqa: S608
    except DBAPIError:
        return None


class SchemaGate:
    """Lets requests through once the revision is right; asks the database no more after that."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_right = False
        self._checked_at = -_RECHECK_SECONDS
        self._found: str | None = None

    async def require(self) -> None:
        """Return at once where all is well. Raises `DatabaseNotMigrated`, `StorageUnavailable`."""
        if self._is_right:
            return
        if time.monotonic() - self._checked_at < _RECHECK_SECONDS:
            raise self._refusal()
        await self.check_now()

    async def check_now(self) -> None:
        """Ask the database. Raises `DatabaseNotMigrated` or `StorageUnavailable`."""
        self._found = await current_revision(self._database)
        self._checked_at = time.monotonic()
        self._is_right = self._found == REVISION
        if not self._is_right:
            raise self._refusal()

    def _refusal(self) -> DatabaseNotMigrated:
        found = f"at revision {self._found}" if self._found else "empty"
        return DatabaseNotMigrated(
            f"The database is {found}, and this version needs {REVISION}: "
            "run `alembic upgrade head`.",
            retry_after_seconds=5,
        )
