"""Executes transaction scripts on Postgres: one per transaction, or in batches under load.

The scripts of a batch advance in step: the next statements of all of them are sent in one round
trip, and they share BEGIN and COMMIT. A batch has only scripts with different lock keys, in the
order of their keys, so that two batches cannot deadlock. If anything fails, the batch is rolled
back and each script is run again in a transaction of its own.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect

from app.core.database.commit_confirmation import CommitConfirmations
from app.core.database.commit_future import CommitFuture
from app.core.database.errors import CommitOutcomeUnknown
from app.core.database.postgres_pool import PooledConnection, PostgresPool, asyncpg
from app.core.database.statement_batching import RoundTrip, RoundTripPlanner
from app.core.database.statements import Rows, Statement
from app.core.database.transactions import LockKeys, TransactionScript
from app.core.database.workspace_scope import RowLevelSecurity

logger = logging.getLogger(__name__)

_MAX_WORKERS = 2
_SMALL_QUEUE = 6
"""Up to this many scripts finish sooner on two workers; with more, one worker that runs larger
batches saves a tenth of a turn's cost."""
_SECOND_WORKER_DELAY_SECONDS = 0.006
"""How long a queued script waits for the only worker, which may itself wait for a row lock."""
_BATCH_SIZE = 32
_BATCH_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '1s'"
"""A script that waits for another server's lock must not delay the rest of its batch for long."""
_MAX_ATTEMPTS = 3
_RETRYABLE_ERRORS = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InvalidCachedStatementError,  # a migration changed the statement's table
)
_LOST_STATEMENT_ERRORS = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
)


@dataclass(slots=True)
class _Job:
    make_script: Callable[[], TransactionScript[Any]]
    locks: LockKeys
    begin: str
    """The SQL that begins its transaction, with the settings of its workspace."""
    origin: object
    """Equal for scripts made at the same place in the code: they run the same statements."""
    future: CommitFuture


class PostgresExecutor:
    """Executes transaction scripts on at most `size` connections."""

    def __init__(
        self,
        dsn: str,
        dialect: Dialect,
        size: int,
        row_level_security: RowLevelSecurity,
        *,
        confirm_seconds: float,
    ) -> None:
        """Prepare; nothing is connected yet. For `confirm_seconds` see `CommitConfirmations`."""
        self._planner = RoundTripPlanner(dialect)
        self._row_level_security = row_level_security
        self._pool = PostgresPool(dsn, size)
        self._confirmations = CommitConfirmations(self._run_alone, confirm_seconds)
        self._queue: list[_Job] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._accepting_workers = 0
        """Workers that still take jobs: one that has ended stays in `_workers` for a moment."""
        self._running_scripts = 0
        """The number of scripts that workers have taken from the queue and not finished."""
        self._second_worker_timer: asyncio.TimerHandle | None = None

    @property
    def checked_out(self) -> int:
        """The number of connections in use."""
        return self._pool.checked_out

    @property
    def size(self) -> int:
        """How many connections there can be."""
        return self._pool.size

    @property
    def waiting(self) -> int:
        """How many transactions wait for a connection."""
        return self._pool.waiting

    @property
    def queue_length(self) -> int:
        """How many scripts wait to be run."""
        return len(self._queue)

    async def run(self, make_script: Callable[[], TransactionScript[Any]]) -> Any:  # noqa: ANN401
        """Run the script that `make_script` returns in a transaction of its own, and commit it.

        What Postgres asks to run again is run again, but never after COMMIT was sent. Raises
        `CommitOutcomeUnknown` with the script's result, and the driver's errors.
        """
        return await self._run_alone(make_script, self._begin_sql())

    def submit(
        self,
        make_script: Callable[[], TransactionScript[Any]],
        locks: LockKeys,
        future: CommitFuture,
    ) -> None:
        """Queue a script for a worker, which may run it in a batch; the result goes to `future`."""
        origin = getattr(make_script, "__code__", make_script)
        self._queue.append(_Job(make_script, locks, self._begin_sql(), origin, future))
        if not self._accepting_workers or self._has_small_queue:
            self._start_worker()
        else:
            self._schedule_second_worker()

    async def close(self) -> None:
        """Finish all queued scripts, then close the idle connections."""
        while self._queue or self._workers:
            self._start_worker()
            await asyncio.gather(*self._workers)
        await self._confirmations.finish()
        if self._second_worker_timer:
            self._second_worker_timer.cancel()
        await self._pool.close()

    def _begin_sql(self) -> str:
        return f"BEGIN; {self._row_level_security.begin_settings()}"

    @property
    def _has_small_queue(self) -> bool:
        return self._running_scripts + len(self._queue) <= _SMALL_QUEUE

    def _start_worker(self) -> None:
        if self._queue and self._accepting_workers < _MAX_WORKERS:
            self._accepting_workers += 1
            worker = asyncio.get_running_loop().create_task(self._drain_queue())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    def _schedule_second_worker(self) -> None:
        """Start a second worker after a delay, if jobs are still queued then."""
        if self._second_worker_timer is None:
            loop = asyncio.get_running_loop()
            self._second_worker_timer = loop.call_later(
                _SECOND_WORKER_DELAY_SECONDS, self._start_second_worker
            )

    def _start_second_worker(self) -> None:
        self._second_worker_timer = None
        self._start_worker()

    async def _drain_queue(self) -> None:
        try:
            while self._queue:
                batch = self._take_batch()
                self._running_scripts += len(batch)
                try:
                    await self._finish(batch)
                finally:
                    self._running_scripts -= len(batch)
                if self._accepting_workers > 1 and not self._has_small_queue:
                    self._schedule_second_worker()
                    return  # one worker with larger batches costs less
        finally:
            self._accepting_workers -= 1

    async def _finish(self, batch: list[_Job]) -> None:
        if len(batch) > 1:
            batch = await self._run_batch(batch)
        if len(batch) == 1:
            await self._finish_alone(batch[0])
        else:
            await asyncio.gather(*(self._finish_alone(job) for job in batch))

    def _take_batch(self) -> list[_Job]:
        """Take the first job and those like it from the queue, sorted by their lock keys.

        They have the same origin and workspace, and no lock key in common.
        """
        first = self._queue[0]
        batch: list[_Job] = []
        remaining: list[_Job] = []
        locked_keys: set[object] = set()
        for job in self._queue:
            is_alike = job.origin is first.origin and job.begin == first.begin
            if is_alike and locked_keys.isdisjoint(job.locks) and len(batch) < _BATCH_SIZE:
                batch.append(job)
                locked_keys.update(job.locks)
            else:
                remaining.append(job)
        self._queue = remaining
        return sorted(batch, key=lambda job: job.locks[0])

    async def _finish_alone(self, job: _Job) -> None:
        try:
            result = await self._run_alone(job.make_script, job.begin)
        except CommitOutcomeUnknown as unknown:
            self._confirmations.start(job.future, job.begin, unknown.result)
        except BaseException as error:
            job.future.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            job.future.set_result(result)

    async def _run_batch(self, batch: list[_Job]) -> list[_Job]:
        """Run `batch` in one transaction; return the jobs to be run again alone, all or none."""
        try:
            lease = await self._pool.begin(f"{batch[0].begin}; {_BATCH_LOCK_TIMEOUT}")
            try:
                results = await self._drive_batch(lease.connection, batch)
            except BaseException:
                await self._pool.roll_back(lease)
                raise
        except Exception as error:  # noqa: BLE001  # rolled back; run alone, each raises its own
            logger.debug("A batch failed; its %d scripts are run one by one: %r", len(batch), error)
            return batch
        try:
            await self._pool.commit(lease)
        except CommitOutcomeUnknown:
            for job, result in zip(batch, results, strict=True):
                self._confirmations.start(job.future, job.begin, result)
        except Exception as error:  # noqa: BLE001  # raised to each
            for job in batch:
                job.future.set_exception(error)
        else:
            for job, result in zip(batch, results, strict=True):
                job.future.set_result(result)
        return []

    async def _drive_batch(self, connection: Any, batch: Sequence[_Job]) -> list[Any]:  # noqa: ANN401
        results: list[Any] = [None] * len(batch)
        scripts = [job.make_script() for job in batch]
        pending = {number: next(script) for number, script in enumerate(scripts)}
        while pending:
            plans = {
                number: self._planner.plan(statements, numbered=True)
                for number, statements in pending.items()
            }
            first = next(iter(plans.values()))
            same_plan = [number for number, trips in plans.items() if trips is first]
            statements = [pending.pop(number) for number in same_plan]
            rows_of_each = await self._execute_batch(connection, statements, first)
            for number, rows in zip(same_plan, rows_of_each, strict=True):
                try:
                    pending[number] = scripts[number].send(rows)
                except StopIteration as end:
                    results[number] = end.value
        return results

    async def _execute_batch(
        self,
        connection: Any,  # noqa: ANN401  # asyncpg's
        statements_of_each: Sequence[Sequence[Statement]],
        trips: Sequence[RoundTrip],
    ) -> list[list[Rows]]:
        """Run each round trip once for all scripts; return the rows of each script's statements.

        All scripts have yielded the same statements, with values of their own; `trips` is the plan.
        """
        rows_of_each: list[list[Rows]] = [
            [[] for _ in statements] for statements in statements_of_each
        ]
        not_done: list[int] = []
        for trip in trips:
            arguments = [
                trip.values(statements, number)
                for number, statements in enumerate(statements_of_each)
            ]
            trip_rows: list[list[Any]] = [[] for _ in statements_of_each]
            for row in await connection.fetchmany(trip.sql, arguments):
                trip_rows[row[-1]].append(row)
            for number, script_rows in enumerate(trip_rows):
                if not trip.read(script_rows, rows_of_each[number]):
                    not_done.append(number)
        if not_done:
            retried = [statements_of_each[number] for number in not_done]
            separate_trips = self._planner.plan(retried[0], numbered=True, locking_apart=True)
            retried_rows = await self._execute_batch(connection, retried, separate_trips)
            for number, rows in zip(not_done, retried_rows, strict=True):
                rows_of_each[number] = rows
        return rows_of_each

    async def _run_alone(
        self, make_script: Callable[[], TransactionScript[Any]], begin: str
    ) -> Any:  # noqa: ANN401
        for tries_left in reversed(range(_MAX_ATTEMPTS)):
            lease = await self._pool.begin(begin)
            try:
                result = await self._drive(lease, make_script())
            except BaseException as error:
                await self._pool.roll_back(lease)
                if not tries_left or not isinstance(
                    error, (*_RETRYABLE_ERRORS, *_LOST_STATEMENT_ERRORS)
                ):
                    raise
                if isinstance(error, _LOST_STATEMENT_ERRORS):
                    logger.info(
                        "The database is behind a transaction pooler; prepared statements are off"
                    )
                    self._pool.disable_prepared_statements()
            else:
                try:
                    await self._pool.commit(lease)
                except CommitOutcomeUnknown as unknown:
                    unknown.result = result
                    raise
                return result
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _drive(self, lease: PooledConnection, script: TransactionScript[Any]) -> object:
        try:
            statements = next(script)
            while True:
                statements = script.send(await self._execute(lease.connection, statements))
        except StopIteration as end:
            return end.value

    async def _execute(
        self,
        connection: Any,  # noqa: ANN401  # asyncpg's
        statements: Sequence[Statement],
        *,
        locking_apart: bool = False,
    ) -> list[Rows]:
        results: list[Rows] = [[] for _ in statements]
        for trip in self._planner.plan(statements, locking_apart=locking_apart):
            rows = await connection.fetch(trip.sql, *trip.values(statements))
            if not trip.read(rows, results):
                return await self._execute(connection, statements, locking_apart=True)
        return results
