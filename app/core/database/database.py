"""The connection pool, and the two kinds of transactions: ORM sessions and transaction scripts.

`get_db` gives a request one session, which is committed before the response is sent.
`Database.transaction` opens a short session for a use case, and `Database.run` runs a transaction
script. Nothing may wait on a provider while a connection is checked out, and nothing else commits.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio
from pydantic import SecretStr
from sqlalchemy import Connection, Dialect, event, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
)

from app.core.config import Settings
from app.core.database.caller_locks import CallerLocks
from app.core.database.commit_future import CommitFuture
from app.core.database.concurrency_limits import (
    CallerSlots,
    bounded_duration,
    copy_busy,
    search_busy,
)
from app.core.database.engines import POOL_WAIT_SECONDS, postgres_engine, sqlite_engine
from app.core.database.errors import storage_errors
from app.core.database.retries import retry_while_unavailable
from app.core.database.transactions import LockKeys, TransactionScript
from app.core.database.url import DatabaseUrl
from app.core.database.workspace_scope import ROLE_EXISTS_SQL, RowLevelSecurity

if TYPE_CHECKING:
    from app.core.database.postgres_executor import PostgresExecutor
    from app.core.database.sqlite_executor import SqliteExecutor

P = ParamSpec("P")
T = TypeVar("T")

_REPEAT_SECONDS = 10
_SQLITE_CONNECTIONS = 15
"""As many as SQLAlchemy's pool opens."""
_MAX_SEARCHES, _MAX_COPIES = 4, 2
_DISPOSE_TIMEOUT_SECONDS, _DISPOSE_POLL_SECONDS = 1.0, 0.005


class Database:
    """Owns the connection pools and the executor of transaction scripts for one process."""

    def __init__(
        self, url: DatabaseUrl, *, pool_size: int = 10, confirm_seconds: float = 20
    ) -> None:
        """Prepare a pool; nothing is connected yet.

        Half of `pool_size` is for turns and half for the rest, so that neither starves the other.
        A COMMIT whose answer was lost is looked up for `confirm_seconds`.
        """
        self.url = url
        self.is_sqlite = url.is_sqlite
        for_turns = max(1, pool_size // 2)
        for_rest = _SQLITE_CONNECTIONS if url.is_sqlite else max(1, pool_size - for_turns)
        self.engine = sqlite_engine(url) if url.is_sqlite else postgres_engine(url, for_rest)
        # One connection is reserved for the look-up of credentials, which every request needs.
        for_requests = max(1, for_rest - 1)
        self._request_slots = asyncio.Semaphore(for_requests)
        half = max(1, for_requests // 2)
        self._search_slots = CallerSlots(min(half, _MAX_SEARCHES), search_busy)
        self._copy_slots = CallerSlots(min(half, _MAX_COPIES), copy_busy)
        self._page_locks = CallerLocks()
        self._open_blocks = 0
        """How many blocks of `transaction` and `reading` have, or wait for, a connection."""
        self._row_level_security = RowLevelSecurity(is_supported=not url.is_sqlite)
        if not url.is_sqlite:
            event.listen(self.engine.sync_engine, "begin", self._apply_workspace_scope)
        self._reading_engine = self.engine.execution_options(read_only=True)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._reading_sessions = async_sessionmaker(self._reading_engine, expire_on_commit=False)
        # SQLite has one writer at a time: waiting here is fair, waiting in SQLite is not.
        self._writer = anyio.Lock(fast_acquire=True) if self.is_sqlite else nullcontext()
        # Each executor imports its driver, about two megabytes: only one of them is needed.
        dialect, dsn = self.engine.dialect, url.dsn
        self._sqlite = (
            _sqlite_executor(url.sqlite_path, dialect, self._writer) if url.sqlite_path else None
        )
        self._postgres = (
            _postgres_executor(dsn, dialect, for_turns, self._row_level_security, confirm_seconds)
            if dsn
            else None
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> "Database":
        """Create the database of `DATABASE_URL`; by default a SQLite file in `DATA_DIR`."""
        return cls(settings.parsed_database_url, pool_size=settings.database_pool_size)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """Yield an ORM session; commit it when the block ends, roll back when it raises.

        Cancellation is delayed until the block ends, since interrupting a query costs its
        connection. So the block must be short, and wait for nothing but the database. Raises
        `StorageUnavailable` when the database cannot be reached, and `CommitOutcomeUnknown` when
        it is lost during COMMIT.
        """
        with anyio.CancelScope(shield=True):
            async with self._writer:
                with storage_errors() as errors:
                    async with self._request_slot():
                        await self._look_up_role()
                        async with self._sessions.begin() as db:
                            yield db
                            await db.flush()
                            errors.is_committing = not self.is_sqlite

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncSession]:
        """Like `transaction`, for blocks that only read: on SQLite it does not wait for writers."""
        with anyio.CancelScope(shield=True), storage_errors():
            async with self._request_slot(), self._read() as db:
                yield db

    @asynccontextmanager
    async def looking_up(self) -> AsyncGenerator[AsyncSession]:
        """Like `reading`, for credentials: a connection is reserved for it."""
        with anyio.CancelScope(shield=True), storage_errors(), self._counted():
            async with self._read() as db:
                yield db

    @asynccontextmanager
    async def searching(self, caller: object) -> AsyncGenerator[AsyncSession]:
        """Like `reading`, for queries whose cost a client decides; one at a time per `caller`.

        Also raises `SearchTooSlow` and `SearchBusy`.
        """
        async with (
            self._search_slots.slot(caller),
            self.reading() as db,
            bounded_duration(db, is_sqlite=self.is_sqlite),
        ):
            yield db

    @asynccontextmanager
    async def copying(self, caller: object) -> AsyncGenerator[AsyncSession]:
        """Like `transaction`, for the insertion of whole sessions; one at a time per `caller`.

        Also raises `CopyBusy`.
        """
        async with self._copy_slots.slot(caller), self.transaction() as db:
            yield db

    @asynccontextmanager
    async def reading_page(self, caller: object) -> AsyncGenerator[AsyncSession]:
        """Like `reading`, for a page of a long response; one page at a time per `caller`."""
        async with self._page_locks.hold(caller), self.reading() as db:
            yield db

    @asynccontextmanager
    async def _read(self) -> AsyncGenerator[AsyncSession]:
        await self._look_up_role()
        async with self._reading_sessions.begin() as db:
            yield db

    @asynccontextmanager
    async def _request_slot(self) -> AsyncGenerator[None]:
        with self._counted():
            async with asyncio.timeout(POOL_WAIT_SECONDS):
                await self._request_slots.acquire()
            try:
                yield
            finally:
                self._request_slots.release()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[AsyncConnection]:
        """Like `transaction`, without the ORM and with the role of the tables' owner.

        It is for migrations and maintenance.
        """
        with anyio.CancelScope(shield=True):
            async with self._writer:
                with storage_errors():
                    owners = self.engine.execution_options(as_owner=True)
                    async with owners.begin() as connection:
                        yield connection

    async def run(
        self,
        script: Callable[P, TransactionScript[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a transaction script in a transaction of its own; return its result once committed.

        It may be run more than once, but only one of them commits. Cancellation waits for its
        end. Raises what it raises, and `StorageUnavailable` and `CommitOutcomeUnknown` as
        `transaction` does.
        """
        with anyio.CancelScope(shield=True), storage_errors():
            if self._postgres:
                await self._look_up_role()
                return await self._postgres.run(lambda: script(*args, **kwargs))
            future = CommitFuture()
            self._submit((), lambda: script(*args, **kwargs), future)
            return await future.result()
        raise AssertionError("unreachable: the scope is never cancelled")

    async def run_repeatable(
        self,
        script: Callable[P, TransactionScript[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Like `run`, for a script whose effect is the same if it is done twice.

        It is repeated for a while when the database is away, and after a COMMIT without an answer.
        """
        return await retry_while_unavailable(
            lambda: self.run(script, *args, **kwargs), _REPEAT_SECONDS
        )

    async def run_batched(
        self,
        locks: LockKeys,
        make_script: Callable[[], TransactionScript[T]],
        on_commit: Callable[[T], Any] | None = None,
        confirm: Callable[[T], TransactionScript[T | None]] | None = None,
    ) -> Any:  # noqa: ANN401  # the program's result, or that of `then`
        """Run the program that `make` returns, perhaps in one transaction with others.

        `locks` names all that it waits for. It goes on where the caller is cancelled: `then` gets
        its result in the moment of the commit, and what that returns is returned here. `confirm`
        finds out what became of a COMMIT whose answer was lost: see `CommitFuture`. Else like
        `run`.
        """
        with storage_errors():
            if self._row_level_security.needs_role_lookup:
                await self._look_up_role()
            future = CommitFuture(on_commit, confirm)
            self._submit(locks, make_script, future)
            return await future.result()

    def _submit(
        self,
        locks: LockKeys,
        make_script: Callable[[], TransactionScript[Any]],
        future: CommitFuture,
    ) -> None:
        if self._postgres:
            self._postgres.submit(make_script, locks, future)
        elif self._sqlite:
            self._sqlite.submit(make_script, future)

    async def _look_up_role(self) -> None:
        """Look up whether the role of row-level security exists, unless it was found before."""
        if not self._row_level_security.needs_role_lookup:
            return
        async with self.engine.execution_options(as_owner=True).connect() as connection:
            has_role = await connection.scalar(text(ROLE_EXISTS_SQL))
        self._row_level_security.set_has_role(has_role=bool(has_role))

    def _apply_workspace_scope(self, connection: Connection) -> None:
        if not connection.get_execution_options().get("as_owner"):
            connection.exec_driver_sql(self._row_level_security.settings_query())

    def checked_out(self) -> int:
        """Return the number of connections in use."""
        pool: Any = self.engine.pool
        return pool.checkedout() + (self._postgres.checked_out if self._postgres else 0)

    def pool_use(self) -> dict[tuple[str, str], float]:
        """Return the connections in use, the most there can be, and who waits, by pool."""
        pool: Any = self.engine.pool
        in_use: int = pool.checkedout()
        use: dict[tuple[str, str], float] = {
            ("requests", "in_use"): in_use,
            ("requests", "limit"): pool.size() + max(0, pool._max_overflow),  # noqa: SLF001
            ("requests", "waiting"): max(0, self._open_blocks - in_use),
        }
        if self._postgres:
            use |= {
                ("turns", "in_use"): self._postgres.checked_out,
                ("turns", "limit"): self._postgres.size,
                ("turns", "waiting"): self._postgres.waiting,
            }
        return use

    @property
    def queue_length(self) -> int:
        """How many transactions of turns wait to be run."""
        executor = self._postgres or self._sqlite
        return executor.queue_length if executor else 0

    @contextmanager
    def _counted(self) -> Generator[None]:
        self._open_blocks += 1
        try:
            yield
        finally:
            self._open_blocks -= 1

    async def dispose(self) -> None:
        """Close every connection, after waiting up to 1 s for running queries.

        SQLAlchemy detaches a connection that is in use, and it would never be closed.
        """
        pool: Any = self.engine.pool
        with anyio.move_on_after(_DISPOSE_TIMEOUT_SECONDS):
            while pool.checkedout():  # noqa: ASYNC110  # SQLAlchemy has no event for it
                await anyio.sleep(_DISPOSE_POLL_SECONDS)
        if self._sqlite:
            await self._sqlite.close()
        if self._postgres:
            await self._postgres.close()
        await self.engine.dispose()


def _sqlite_executor(
    path: Path, dialect: Dialect, writer: AbstractAsyncContextManager[object]
) -> "SqliteExecutor":
    from app.core.database.sqlite_executor import SqliteExecutor

    return SqliteExecutor(path, dialect, writer)


def _postgres_executor(
    dsn: SecretStr,
    dialect: Dialect,
    size: int,
    row_level_security: RowLevelSecurity,
    confirm_seconds: float,
) -> "PostgresExecutor":
    from app.core.database.postgres_executor import PostgresExecutor

    return PostgresExecutor(
        dsn.get_secret_value(), dialect, size, row_level_security, confirm_seconds=confirm_seconds
    )
