"""An exclusive lock that allows one process per SQLite file.

The queue of writers and the live turns are in that process's memory.
"""

from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from app.core.errors import StartRefused
from app.core.private_files import protect_sqlite_files


class DatabaseInUse(StartRefused):
    """Another process uses the same SQLite file; the message says what to do."""


@contextmanager
def exclusive_file_lock(database_path: Path) -> Generator[None]:
    """Hold the lock file next to the database file while the block runs.

    The lock is SQLite's own lock on an empty database, which works alike on every operating
    system and is released when the process is killed. Raises `DatabaseInUse`.
    """
    import sqlite3  # not imported if the database is PostgreSQL

    protect_sqlite_files(database_path)
    lock_path = database_path.with_name(database_path.name + ".lock")
    with closing(sqlite3.connect(lock_path, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise DatabaseInUse(
                f"Another process uses {database_path}: stop it, set DATA_DIR to another folder, "
                "or set DATABASE_URL to a PostgreSQL database, which several servers can share."
            ) from error
        yield
