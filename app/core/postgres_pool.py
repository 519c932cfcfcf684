"""Connections to Postgres for programs, each handed out with an open transaction.

No pre-ping and no reset: BEGIN is a transaction's first word on a connection, so it is what finds
out that the server is gone, while nothing has been done; and no statement leaves a session state.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg as untyped_asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none

asyncpg: Any = untyped_asyncpg

_POOL_WAIT_SECONDS = 5
_CONNECT_SECONDS = 10
_COMMAND_SECONDS = 30
_RECYCLE_SECONDS = 1800
_STATEMENT_CACHE = 200
_SUPABASE_POOLER_PORT = 6543
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)


@dataclass(slots=True)
class Lease:
    """A connection in use; give it back with `commit` or `roll_back`."""

    connection: Any
    opened_at: float


class PostgresPool:
    """At most `size` connections, opened as they are needed, the last used first."""

    def __init__(self, dsn: str, size: int) -> None:
        """Prepare; nothing is connected yet."""
        self._dsn = dsn
        self._idle: list[Lease] = []
        self._free = asyncio.Semaphore(size)
        self._may_prepare: bool | None = None
        """A transaction pooler gives each transaction another server connection."""
        if urlsplit(dsn).port == _SUPABASE_POOLER_PORT:
            self._may_prepare = False
        self.checked_out = 0
        """How many connections are in use."""

    async def begin(self, begin: str = "BEGIN") -> Lease:
        """Return a connection with an open transaction; one that has died meanwhile is replaced.

        `begin` begins with BEGIN, and may go on with settings of the transaction.

        Raises `TimeoutError` where all are in use for long, and asyncpg's errors.
        """
        if self._free.locked():
            async with asyncio.timeout(_POOL_WAIT_SECONDS):
                await self._free.acquire()
        else:
            await self._free.acquire()  # at once
        self.checked_out += 1
        try:
            return await self._begin(begin)
        except BaseException:
            self._returned()
            raise

    async def commit(self, lease: Lease) -> None:
        """Commit, and take the connection back. Raises asyncpg's errors."""
        try:
            await lease.connection.execute("COMMIT")
        except BaseException:
            await self.roll_back(lease)
            raise
        self._idle.append(lease)
        self._returned()

    async def roll_back(self, lease: Lease) -> None:
        """Give up what was done, and take the connection back; raises nothing."""
        try:
            await lease.connection.execute("ROLLBACK")
        except BaseException as error:
            lease.connection.terminate()
            if not isinstance(error, Exception):
                raise
        else:
            self._idle.append(lease)
        finally:
            self._returned()

    def prepare_no_more(self) -> None:
        """Learn that there is a pooler, which loses prepared statements."""
        self._may_prepare = False
        self._drop_idle()

    async def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for lease in idle:
            with suppress(Exception):
                await lease.connection.close(timeout=2)

    def _returned(self) -> None:
        self.checked_out -= 1
        self._free.release()

    async def _begin(self, begin: str) -> Lease:
        while self._idle:
            lease = self._idle.pop()
            if time.monotonic() - lease.opened_at > _RECYCLE_SECONDS:
                lease.connection.terminate()
                continue
            try:
                await lease.connection.execute(begin)
            except BaseException as error:
                lease.connection.terminate()
                if not isinstance(error, _LOST):
                    raise
                self._drop_idle()  # they are as old: the server was restarted
            else:
                return lease
        lease = await self._connect()
        try:
            await lease.connection.execute(begin)
        except BaseException:
            lease.connection.terminate()
            raise
        return lease

    async def _connect(self) -> Lease:
        if self._may_prepare is None:
            connection = await self._open(statement_cache=0)
            self._may_prepare = await _is_direct(connection)
            if not self._may_prepare:
                return Lease(connection, time.monotonic())
            connection.terminate()
        connection = await self._open(statement_cache=_STATEMENT_CACHE * self._may_prepare)
        return Lease(connection, time.monotonic())

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
    """Tell Postgres itself from a pooler, which shows a process id of its own making."""
    return await connection.fetchval("SELECT pg_backend_pid()") == connection.get_server_pid()
