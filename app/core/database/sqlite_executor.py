"""Executes transaction scripts on one SQLite connection; queued ones are committed in batches.

Statements run on the event loop: they work in memory, and take less time than the switch to a
thread and back. BEGIN never blocks; COMMIT waits for the disk, so it runs in a thread.
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

from app.core.database.commit_future import CommitFuture
from app.core.database.transactions import TransactionScript

_BATCH_SIZE = 32
"""The most scripts in one commit, so that the event loop is never blocked for long."""
_BUSY_PAUSE_SECONDS = 0.005
_BUSY_TIMEOUT_SECONDS = 5.0


@dataclass(slots=True)
class _Job:
    make_script: Callable[[], TransactionScript[Any]]
    future: CommitFuture
    result: Any = None
    error: BaseException | None = None

    def resolve(self) -> None:
        if self.error:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class SqliteExecutor:
    """Executes transaction scripts; it holds the lock `writer`, which ORM sessions use as well."""

    def __init__(
        self, path: Path, dialect: Dialect, writer: AbstractAsyncContextManager[object]
    ) -> None:
        """Create the executor; the first script opens the file."""
        self._path = path
        self._dialect = dialect
        self._writer = writer
        self._connection: sqlite3.Connection | None = None
        self._committer = ThreadPoolExecutor(1, "sqlite-commit")
        self._queue: list[_Job] = []
        self._worker: asyncio.Task[None] | None = None

    @property
    def queue_length(self) -> int:
        """How many scripts wait to be run."""
        return len(self._queue)

    def submit(
        self, make_script: Callable[[], TransactionScript[Any]], future: CommitFuture
    ) -> None:
        """Queue the script that `make_script` returns; `future` completes once it is on disk."""
        self._queue.append(_Job(make_script, future))
        if self._worker is None:
            self._worker = asyncio.get_running_loop().create_task(self._drain_queue())

    async def close(self) -> None:
        """Finish all queued scripts, then close the connection."""
        if self._worker:
            await self._worker
        self._committer.shutdown()
        if self._connection:
            self._connection.close()
            self._connection = None

    async def _drain_queue(self) -> None:
        try:
            while self._queue:
                async with self._writer:
                    batch = self._queue[:_BATCH_SIZE]
                    del self._queue[:_BATCH_SIZE]
                    await self._commit_batch(batch)
                for job in batch:
                    job.resolve()
        finally:
            self._worker = None

    async def _commit_batch(self, batch: Sequence[_Job]) -> None:
        """Run and commit `batch`; a script that fails is rolled back by itself."""
        try:
            connection = await self._begin()
            try:
                if not self._run_batch(connection, batch):
                    connection = await self._begin()
                    for job in batch:
                        self._run_in_savepoint(connection, job)
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

    def _run_batch(self, connection: sqlite3.Connection, batch: Sequence[_Job]) -> bool:
        """Run all scripts without savepoints, since few fail.

        Returns false if one of several fails: then the batch is rolled back, to be run again in
        savepoints.
        """
        try:
            for job in batch:
                job.result = self._drive(connection, job.make_script())
        except Exception as error:
            if not connection.in_transaction:  # SQLite has rolled back all: a full disk, say
                raise
            connection.rollback()
            if len(batch) > 1:
                return False  # the same script fails again in its savepoint
            batch[0].error = error
        return True

    def _run_in_savepoint(self, connection: sqlite3.Connection, job: _Job) -> None:
        connection.execute("SAVEPOINT script")
        try:
            job.result = self._drive(connection, job.make_script())
        except Exception as error:
            job.error = error
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO script")
        connection.execute("RELEASE script")

    def _drive(self, connection: sqlite3.Connection, script: TransactionScript[Any]) -> object:
        try:
            statements = next(script)
            while True:
                results: list[Any] = []
                for statement, parameters in statements:
                    compiled = statement.compiled(self._dialect)
                    cursor = connection.execute(compiled.sql, compiled.values(parameters))
                    results.append(compiled.read(cursor.fetchall()))
                statements = script.send(results)
        except StopIteration as end:
            return end.value

    async def _begin(self) -> sqlite3.Connection:
        """Begin a write transaction; poll without blocking while another process is writing."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _BUSY_TIMEOUT_SECONDS
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
    """Set a new connection to WAL, synchronous FULL, foreign keys and a busy timeout of 5 s.

    Raises `sqlite3.OperationalError`.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.execute("PRAGMA journal_mode=WAL")
    row = cursor.fetchone()
    if row is None or row[0] != "wal":
        raise sqlite3.OperationalError(
            "SQLite cannot use a write-ahead log in this folder: set DATA_DIR to a local disk"
        )
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
