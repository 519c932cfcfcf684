"""Runs programs on Postgres: alone, or many in one transaction while the lanes are busy.

Together they go in step: what all of them ask next is sent in one round trip, and they share BEGIN
and COMMIT. Only programs that lock different rows go together, and in the order of their locks,
so that two such transactions never wait for each other. Whatever goes wrong, each of them is run
again alone.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Dialect

from app.core.direct import Locks, Program, Rows, Statement
from app.core.postgres_pool import Lease, PostgresPool, asyncpg
from app.core.promise import Promise
from app.core.round_trips import RoundTrip, RoundTrips
from app.core.tenancy import Confinement

logger = logging.getLogger(__name__)

_LANES = 2
_FEW = 6
"""As many programs are sooner done in two lanes; more cost a tenth of a turn less in one."""
_PATIENCE_SECONDS = 0.006
"""So long a program waits for the one lane, which may itself wait for somebody's lock."""
_BATCH = 32
_TOGETHER = "SET LOCAL lock_timeout = '1s'"
"""One that waits for a lock of another server must not hold up the others for long."""
_TRIES = 3
_RUN_AGAIN = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InvalidCachedStatementError,  # a migration changed its table
)
_NOT_PREPARED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


@dataclass(slots=True)
class _Job:
    make: Callable[[], Program[Any]]
    locks: Locks
    begin: str
    """Its transaction's first words, which say whose it is."""
    kind: object
    """The same for programs that come from one place in the code: they ask the same."""
    promise: Promise


class PostgresRunner:
    """Runs programs on at most `size` connections."""

    def __init__(self, dsn: str, dialect: Dialect, size: int, confinement: Confinement) -> None:
        """Prepare; nothing is connected yet."""
        self._round_trips = RoundTrips(dialect)
        self._confinement = confinement
        self._pool = PostgresPool(dsn, size)
        self._waiting: list[_Job] = []
        self._lanes: set[asyncio.Task[None]] = set()
        self._open_lanes = 0
        """Those that still take programs: one that has ended stays in `_lanes` for a moment."""
        self._in_lanes = 0
        """How many programs are there."""
        self._help: asyncio.TimerHandle | None = None

    @property
    def checked_out(self) -> int:
        """How many connections are in use."""
        return self._pool.checked_out

    async def run(self, make: Callable[[], Program[Any]]) -> Any:  # noqa: ANN401
        """Run the program that `make` returns in a transaction; it is committed when this returns.

        What Postgres asks to run again is run again. Raises the driver's errors.
        """
        return await self._run_alone(make, self._begin())

    def start(self, make: Callable[[], Program[Any]], locks: Locks, promise: Promise) -> None:
        """Run a program likewise, but in a task of our own, and perhaps together with others."""
        kind = getattr(make, "__code__", make)
        self._waiting.append(_Job(make, locks, self._begin(), kind, promise))
        if not self._open_lanes or self._is_quiet:
            self._open_lane()
        else:
            self._call_for_help()

    async def close(self) -> None:
        """Finish what was started, and close the idle connections."""
        while self._waiting or self._lanes:
            self._open_lane()
            await asyncio.gather(*self._lanes)
        if self._help:
            self._help.cancel()
        await self._pool.close()

    def _begin(self) -> str:
        return f"BEGIN; {self._confinement.words()}"

    @property
    def _is_quiet(self) -> bool:
        return self._in_lanes + len(self._waiting) <= _FEW

    def _open_lane(self) -> None:
        if self._waiting and self._open_lanes < _LANES:
            self._open_lanes += 1
            lane = asyncio.get_running_loop().create_task(self._work_off())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)

    def _call_for_help(self) -> None:
        """Open another lane soon, should somebody wait still."""
        if self._help is None:
            loop = asyncio.get_running_loop()
            self._help = loop.call_later(_PATIENCE_SECONDS, self._lend_a_hand)

    def _lend_a_hand(self) -> None:
        self._help = None
        self._open_lane()

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                batch = self._take_compatible()
                self._in_lanes += len(batch)
                try:
                    await self._finish(batch)
                finally:
                    self._in_lanes -= len(batch)
                if self._open_lanes > 1 and not self._is_quiet:
                    self._call_for_help()
                    return  # the other takes all that wait, which costs less
        finally:
            self._open_lanes -= 1

    async def _finish(self, batch: list[_Job]) -> None:
        if len(batch) > 1:
            batch = await self._run_together(batch)
        if len(batch) == 1:
            await self._finish_alone(batch[0])
        else:
            await asyncio.gather(*(self._finish_alone(job) for job in batch))

    def _take_compatible(self) -> list[_Job]:
        """Take jobs alike, of one workspace, none locked twice, in the order of their locks."""
        first = self._waiting[0]
        taken: list[_Job] = []
        left: list[_Job] = []
        held: set[object] = set()
        for job in self._waiting:
            is_alike = job.kind is first.kind and job.begin == first.begin
            if is_alike and held.isdisjoint(job.locks) and len(taken) < _BATCH:
                taken.append(job)
                held.update(job.locks)
            else:
                left.append(job)
        self._waiting = left
        return sorted(taken, key=lambda job: job.locks[0])

    async def _finish_alone(self, job: _Job) -> None:
        try:
            result = await self._run_alone(job.make, job.begin)
        except BaseException as error:
            job.promise.break_with(error)
            if not isinstance(error, Exception):
                raise
        else:
            job.promise.keep(result)

    async def _run_together(self, batch: list[_Job]) -> list[_Job]:
        """Run `batch` in one transaction; return all of it where anything went wrong."""
        try:
            lease = await self._pool.begin(f"{batch[0].begin}; {_TOGETHER}")
            try:
                results = await self._drive_together(lease.connection, batch)
            except BaseException:
                await self._pool.roll_back(lease)
                raise
        except Exception as error:  # noqa: BLE001  # nothing was done, and each raises its own
            logger.debug("%d programs are run alone: %r", len(batch), error)
            return batch
        try:
            await self._pool.commit(lease)
        except Exception as error:  # noqa: BLE001  # raised to each
            for job in batch:
                job.promise.break_with(error)
        else:
            for job, result in zip(batch, results, strict=True):
                job.promise.keep(result)
        return []

    async def _drive_together(self, connection: Any, batch: Sequence[_Job]) -> list[Any]:  # noqa: ANN401
        results: list[Any] = [None] * len(batch)
        programs = [job.make() for job in batch]
        asking = {number: next(program) for number, program in enumerate(programs)}
        while asking:
            trips_of = {
                number: self._round_trips.plan(asked, numbered=True)
                for number, asked in asking.items()
            }
            first = next(iter(trips_of.values()))
            alike = [number for number, trips in trips_of.items() if trips is first]
            asked = [asking.pop(number) for number in alike]
            found = await self._ask_together(connection, asked, first)
            for number, rows in zip(alike, found, strict=True):
                try:
                    asking[number] = programs[number].send(rows)
                except StopIteration as end:
                    results[number] = end.value
        return results

    async def _ask_together(
        self,
        connection: Any,  # noqa: ANN401  # asyncpg's
        asked: Sequence[Sequence[Statement]],
        trips: Sequence[RoundTrip],
    ) -> list[list[Rows]]:
        """Run each statement for all who ask it, and return the rows of each of them.

        All of them ask the same statements, in `trips`.
        """
        found: list[list[Rows]] = [[[] for _ in statements] for statements in asked]
        not_done: list[int] = []
        for trip in trips:
            arguments = [trip.values(statements, number) for number, statements in enumerate(asked)]
            rows_of: list[list[Any]] = [[] for _ in asked]
            for row in await connection.fetchmany(trip.sql, arguments):
                rows_of[row[-1]].append(row)
            for number, its_rows in enumerate(rows_of):
                if not trip.read(its_rows, found[number]):
                    not_done.append(number)
        if not_done:
            again = [asked[number] for number in not_done]
            apart = self._round_trips.plan(again[0], numbered=True, locking_apart=True)
            answers = await self._ask_together(connection, again, apart)
            for number, rows in zip(not_done, answers, strict=True):
                found[number] = rows
        return found

    async def _run_alone(self, make: Callable[[], Program[Any]], begin: str) -> Any:  # noqa: ANN401
        for tries_left in reversed(range(_TRIES)):
            lease = await self._pool.begin(begin)
            try:
                result = await self._drive(lease, make())
            except BaseException as error:
                await self._pool.roll_back(lease)
                if not tries_left or not isinstance(error, (*_RUN_AGAIN, *_NOT_PREPARED)):
                    raise
                if isinstance(error, _NOT_PREPARED):
                    logger.info("The database is behind a pooler: statements are not prepared")
                    self._pool.prepare_no_more()
            else:
                await self._pool.commit(lease)
                return result
        raise AssertionError("the last try returns or raises")

    async def _drive(self, lease: Lease, program: Program[Any]) -> object:
        try:
            statements = next(program)
            while True:
                statements = program.send(await self._ask(lease.connection, statements))
        except StopIteration as end:
            return end.value

    async def _ask(
        self,
        connection: Any,  # noqa: ANN401  # asyncpg's
        statements: Sequence[Statement],
        *,
        locking_apart: bool = False,
    ) -> list[Rows]:
        found: list[Rows] = [[] for _ in statements]
        for trip in self._round_trips.plan(statements, locking_apart=locking_apart):
            rows = await connection.fetch(trip.sql, *trip.values(statements))
            if not trip.read(rows, found):
                return await self._ask(connection, statements, locking_apart=True)
        return found
