"""One process per SQLite file: its queue of writers and its live turns are in memory."""

from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from app.core.errors import StartRefused


class DatabaseInUse(StartRefused):
    """Another process serves the same SQLite file; the text says what to do."""


@contextmanager
def sole_owner(database_path: Path) -> Generator[None]:
    """Hold a lock beside the database file while the block runs; a killed process frees it.

    SQLite's own lock of an empty file: it works alike on every system. Raises `DatabaseInUse`.
    """
    import sqlite3  # not loaded where Postgres is the database

    database_path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = database_path.with_name(database_path.name + ".lock")
    with closing(sqlite3.connect(lock_path, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise DatabaseInUse(
                f"Another process uses {database_path}: stop it, set DATA_DIR to another folder, "
                "or set DATABASE_URL to a PostgreSQL database, which several can share."
            ) from error
        yield
