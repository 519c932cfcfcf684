"""Runs transactions on connections of its own, with as few round trips as asyncpg can.

No pre-ping and no reset: BEGIN is a transaction's first word on a connection, so it is what finds
out that the server is gone, while nothing has been done; and no statement leaves a session state.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg as untyped_asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none
from sqlalchemy import Dialect

from app.core.direct import Program

asyncpg: Any = untyped_asyncpg
logger = logging.getLogger(__name__)

_POOL_WAIT_SECONDS = 5
_CONNECT_SECONDS = 10
_COMMAND_SECONDS = 30
_RECYCLE_SECONDS = 1800
_STATEMENT_CACHE = 200
_SUPABASE_POOLER_PORT = 6543
_TRIES = 3
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)
_RUN_AGAIN = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InvalidCachedStatementError,  # a migration changed its table
)
_NOT_PREPARED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


@dataclass(slots=True)
class _Pooled:
    connection: Any
    opened_at: float


class PostgresRunner:
    """At most `size` connections, opened as they are needed, the last used first."""

    def __init__(self, dsn: str | None, dialect: Dialect, size: int) -> None:
        """Prepare; nothing is connected yet."""
        self._dsn = dsn
        self._dialect = dialect
        self._idle: list[_Pooled] = []
        self._free = asyncio.Semaphore(size)
        self._may_prepare: bool | None = None
        """A transaction pooler gives each transaction another server connection."""
        if urlsplit(dsn or "").port == _SUPABASE_POOLER_PORT:
            self._may_prepare = False
        self.checked_out = 0
        """How many connections are in use."""

    async def run(self, make: Callable[[], Program[Any]]) -> Any:  # noqa: ANN401  # the program's
        """Run the program that `make` returns in a transaction; it is committed at the end.

        What Postgres asks to run again is run again. Raises the driver's errors.
        """
        async with asyncio.timeout(_POOL_WAIT_SECONDS):
            await self._free.acquire()
        self.checked_out += 1
        try:
            for tries_left in reversed(range(_TRIES)):
                pooled = await self._begin()
                try:
                    return await self._run_on(pooled, make())
                except _RUN_AGAIN:
                    if not tries_left:
                        raise
                except _NOT_PREPARED:
                    if not tries_left:
                        raise
                    logger.info("The database is behind a pooler: statements are not prepared")
                    self._may_prepare = False
                    self._drop_idle()
            raise AssertionError("the last try returns or raises")
        finally:
            self.checked_out -= 1
            self._free.release()

    async def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for pooled in idle:
            with suppress(Exception):
                await pooled.connection.close(timeout=2)

    async def _begin(self) -> _Pooled:
        """Return a connection with an open transaction; one that has died meanwhile is replaced."""
        while self._idle:
            pooled = self._idle.pop()
            if time.monotonic() - pooled.opened_at > _RECYCLE_SECONDS:
                pooled.connection.terminate()
                continue
            try:
                await pooled.connection.execute("BEGIN")
            except BaseException as error:
                pooled.connection.terminate()
                if not isinstance(error, _LOST):
                    raise
                self._drop_idle()  # they are as old: the server was restarted
            else:
                return pooled
        pooled = await self._connect()
        try:
            await pooled.connection.execute("BEGIN")
        except BaseException:
            pooled.connection.terminate()
            raise
        return pooled

    async def _connect(self) -> _Pooled:
        if self._may_prepare is None:
            connection = await self._open(statement_cache=0)
            self._may_prepare = await _is_direct(connection)
            if not self._may_prepare:
                return _Pooled(connection, time.monotonic())
            connection.terminate()
        connection = await self._open(statement_cache=_STATEMENT_CACHE * self._may_prepare)
        return _Pooled(connection, time.monotonic())

    async def _open(self, *, statement_cache: int) -> Any:  # noqa: ANN401  # asyncpg's
        return await asyncpg.connect(
            self._dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=_COMMAND_SECONDS,
            statement_cache_size=statement_cache,
        )

    def _drop_idle(self) -> None:
        for pooled in self._idle:
            pooled.connection.terminate()
        self._idle.clear()

    async def _run_on(self, pooled: _Pooled, program: Program[Any]) -> object:
        connection = pooled.connection
        try:
            result = await self._drive(connection, program)
            await connection.execute("COMMIT")
        except Exception:
            try:
                await connection.execute("ROLLBACK")
            except Exception:  # noqa: BLE001  # the first error says more
                connection.terminate()
            else:
                self._idle.append(pooled)
            raise
        except BaseException:
            connection.terminate()
            raise
        self._idle.append(pooled)
        return result

    async def _drive(self, connection: Any, program: Program[Any]) -> object:  # noqa: ANN401
        try:
            statements = next(program)
            while True:
                found: list[Any] = []
                for statement, parameters in statements:
                    compiled = statement.compiled(self._dialect)
                    rows = await connection.fetch(compiled.sql, *compiled.values(parameters))
                    found.append(compiled.read(rows))
                statements = program.send(found)
        except StopIteration as end:
            return end.value


async def _is_direct(connection: Any) -> bool:  # noqa: ANN401  # asyncpg's
    """Tell Postgres itself from a pooler, which shows a process id of its own making."""
    return await connection.fetchval("SELECT pg_backend_pid()") == connection.get_server_pid()
