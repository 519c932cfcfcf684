"""A connection pool for transaction scripts, which hands out connections with BEGIN already sent.

It needs no pre-ping: BEGIN is the first statement on a connection, so a dead connection is noticed
before anything was done. It needs no reset: no statement changes the state of the session.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg as untyped_asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none

from app.core.database.errors import CommitOutcomeUnknown, StorageUnavailable, is_unavailable

asyncpg: Any = untyped_asyncpg

_POOL_WAIT_SECONDS = 5
_CONNECT_SECONDS = 10
_COMMAND_SECONDS = 30
_RECYCLE_SECONDS = 1800
_STATEMENT_CACHE = 200
_SUPABASE_POOLER_PORT = 6543
_CONNECTION_ERRORS = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


@dataclass(slots=True)
class PooledConnection:
    """A connection with an open transaction; return it with `commit` or `roll_back`."""

    connection: Any
    opened_at: float


class PostgresPool:
    """A pool of at most `size` connections, opened on demand and reused last in, first out."""

    def __init__(self, dsn: str, size: int) -> None:
        """Create the pool without connecting."""
        self._dsn = dsn
        self._idle: list[PooledConnection] = []
        self._free = asyncio.Semaphore(size)
        self._can_prepare: bool | None = None
        """Whether prepared statements work: not behind a transaction pooler, `None` if unknown."""
        if urlsplit(dsn).port == _SUPABASE_POOLER_PORT:
            self._can_prepare = False
        self.size = size
        self.checked_out = 0
        """How many connections are in use."""
        self.waiting = 0
        """How many wait for a connection."""

    async def begin(self, begin: str = "BEGIN") -> PooledConnection:
        """Return a connection with an open transaction; dead connections are replaced.

        `begin` is BEGIN, optionally followed by settings of the transaction.

        Raises `TimeoutError` if all connections stay in use for 5 s, and asyncpg's errors.
        """
        if self._free.locked():
            self.waiting += 1
            try:
                async with asyncio.timeout(_POOL_WAIT_SECONDS):
                    await self._free.acquire()
            finally:
                self.waiting -= 1
        else:
            await self._free.acquire()  # does not wait
        self.checked_out += 1
        try:
            return await self._begin(begin)
        except BaseException:
            self._release_slot()
            raise

    async def commit(self, lease: PooledConnection) -> None:
        """Commit, and take the connection back.

        Raises `CommitOutcomeUnknown` if the connection is lost after COMMIT was sent,
        `StorageUnavailable` if it was lost before, and asyncpg's errors if Postgres refuses.
        """
        was_lost = lease.connection.is_closed()
        try:
            await lease.connection.execute("COMMIT")
        except BaseException as error:
            if not is_unavailable(error):
                await self.roll_back(lease)
                raise
            lease.connection.terminate()
            self._release_slot()
            raise (StorageUnavailable if was_lost else CommitOutcomeUnknown) from error
        self._idle.append(lease)
        self._release_slot()

    async def roll_back(self, lease: PooledConnection) -> None:
        """Roll back, and return the connection to the pool; driver errors only close it."""
        try:
            await lease.connection.execute("ROLLBACK")
        except BaseException as error:
            lease.connection.terminate()
            if not isinstance(error, Exception):
                raise
        else:
            self._idle.append(lease)
        finally:
            self._release_slot()

    def disable_prepared_statements(self) -> None:
        """Stop preparing statements, because a pooler loses them; close the idle connections."""
        self._can_prepare = False
        self._drop_idle()

    async def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for lease in idle:
            with suppress(Exception):
                await lease.connection.close(timeout=2)

    def _release_slot(self) -> None:
        self.checked_out -= 1
        self._free.release()

    async def _begin(self, begin: str) -> PooledConnection:
        while self._idle:
            lease = self._idle.pop()
            if time.monotonic() - lease.opened_at > _RECYCLE_SECONDS:
                lease.connection.terminate()
                continue
            try:
                await lease.connection.execute(begin)
            except BaseException as error:
                lease.connection.terminate()
                if not isinstance(error, _CONNECTION_ERRORS):
                    raise
                self._drop_idle()  # the server was probably restarted, so they are dead, too
            else:
                return lease
        lease = await self._connect()
        try:
            await lease.connection.execute(begin)
        except BaseException:
            lease.connection.terminate()
            raise
        return lease

    async def _connect(self) -> PooledConnection:
        if self._can_prepare is None:
            connection = await self._open(statement_cache=0)
            self._can_prepare = await _is_direct(connection)
            if not self._can_prepare:
                return PooledConnection(connection, time.monotonic())
            connection.terminate()
        connection = await self._open(statement_cache=_STATEMENT_CACHE * self._can_prepare)
        return PooledConnection(connection, time.monotonic())

    async def _open(self, *, statement_cache: int) -> Any:  # noqa: ANN401  # asyncpg's
        return await asyncpg.connect(
            self._dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=_COMMAND_SECONDS,
            statement_cache_size=statement_cache,
        )

    def _drop_idle(self) -> None:
        for lease in self._idle:
            lease.connection.terminate()
        self._idle.clear()


async def _is_direct(connection: Any) -> bool:  # noqa: ANN401  # asyncpg's
    """Return whether this is Postgres itself: a pooler reports another backend process id."""
    return await connection.fetchval("SELECT pg_backend_pid()") == connection.get_server_pid()
