"""Runs transactions on one SQLite connection; those that wait together commit together.

Statements run on the event loop: they touch memory, and cost less there than the way to another
thread and back. BEGIN never waits, and COMMIT, which waits for the disk, has a thread.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Dialect

from app.core.direct import Program
from app.core.promise import Promise

_BATCH = 32
"""Programs in one commit at most, so that the loop is never away for long."""
_BUSY_PAUSE_SECONDS = 0.005
_BUSY_PATIENCE_SECONDS = 5.0


@dataclass(slots=True)
class _Job:
    make: Callable[[], Program[Any]]
    promise: Promise
    result: Any = None
    error: BaseException | None = None

    def tell(self) -> None:
        if self.error:
            self.promise.break_with(self.error)
        else:
            self.promise.keep(self.result)


class SqliteRunner:
    """Writes beside SQLAlchemy's connections, and holds `writer` while it does."""

    def __init__(
        self, path: Path, dialect: Dialect, writer: AbstractAsyncContextManager[object]
    ) -> None:
        """Prepare; the file is opened by the first program."""
        self._path = path
        self._dialect = dialect
        self._writer = writer
        self._connection: sqlite3.Connection | None = None
        self._committer = ThreadPoolExecutor(1, "sqlite-commit")
        self._waiting: list[_Job] = []
        self._pump: asyncio.Task[None] | None = None

    def start(self, make: Callable[[], Program[Any]], promise: Promise) -> None:
        """Run the program that `make` returns; when the promise is kept it is on the disk."""
        self._waiting.append(_Job(make, promise))
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._work_off())

    async def close(self) -> None:
        """Close the connection."""
        if self._pump:
            await self._pump
        self._committer.shutdown()
        if self._connection:
            self._connection.close()
            self._connection = None

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                async with self._writer:
                    batch = self._waiting[:_BATCH]
                    del self._waiting[:_BATCH]
                    await self._commit_together(batch)
                for job in batch:
                    job.tell()
        finally:
            self._pump = None

    async def _commit_together(self, batch: Sequence[_Job]) -> None:
        """Run and commit `batch`; what fails alone is rolled back alone."""
        try:
            connection = await self._begin()
            try:
                if not self._run_at_once(connection, batch):
                    connection = await self._begin()
                    for job in batch:
                        self._run_apart(connection, job)
                if connection.in_transaction:
                    loop = asyncio.get_running_loop()
                    await loop.run_in_executor(self._committer, connection.commit)
            finally:
                if connection.in_transaction:
                    connection.rollback()
        except BaseException as error:
            for job in batch:
                job.error = job.error or error
            if not isinstance(error, Exception):
                raise

    def _run_at_once(self, connection: sqlite3.Connection, batch: Sequence[_Job]) -> bool:
        """Run all of them; where one of several fails, as few do, nothing of them is done."""
        try:
            for job in batch:
                job.result = self._drive(connection, job.make())
        except Exception as error:
            if not connection.in_transaction:  # a full disk, say: SQLite has rolled back all
                raise
            connection.rollback()
            if len(batch) > 1:
                return False  # it will show itself again
            batch[0].error = error
        return True

    def _run_apart(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT program")
        try:
            job.result = self._drive(connection, job.make())
        except Exception as error:
            job.error = error
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO program")
        connection.execute("RELEASE program")

    def _drive(self, connection: sqlite3.Connection, program: Program[Any]) -> object:
        try:
            statements = next(program)
            while True:
                found: list[Any] = []
                for statement, parameters in statements:
                    compiled = statement.compiled(self._dialect)
                    cursor = connection.execute(compiled.sql, compiled.values(parameters))
                    found.append(compiled.read(cursor.fetchall()))
                statements = program.send(found)
        except StopIteration as end:
            return end.value

    async def _begin(self) -> sqlite3.Connection:
        """Begin, or wait for a writer of another process; the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _BUSY_PATIENCE_SECONDS
        while True:
            try:
                connection = self._connection or self._open()
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
                if not is_busy or loop.time() > give_up_at:
                    raise
                await asyncio.sleep(_BUSY_PAUSE_SECONDS)
            else:
                return connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=0, isolation_level=None, check_same_thread=False
        )
        prepare_sqlite(connection)
        connection.execute("PRAGMA busy_timeout=0")
        self._connection = connection
        return connection


def prepare_sqlite(connection: Any) -> None:  # noqa: ANN401  # sqlite3's, or an adapter of it
    """Make a new connection durable and strict. Raises `sqlite3.OperationalError`."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA journal_mode=WAL")
    row = cursor.fetchone()
    if row is None or row[0] != "wal":
        raise sqlite3.OperationalError("SQLite cannot use a write-ahead log in this folder")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
