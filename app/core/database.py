"""The engine, and the ways to hold a transaction.

`get_db` gives a request one transaction, committed before the response is sent.
`Database.transaction` gives a use case as many short ones as it needs: nothing may
wait on a provider while a connection is checked out. Nothing else commits.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import anyio
import orjson
from fastapi import Depends
from pydantic import SecretStr
from sqlalchemy import URL, Connection, Dialect, event, exc, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from starlette.requests import HTTPConnection

from app.core.config import Settings
from app.core.database_url import DatabaseUrl
from app.core.direct import SCHEMA, Locks, Program
from app.core.errors import AppError, ErrorKind
from app.core.promise import Promise
from app.core.tenancy import ROLE_IS_THERE, Confinement

if TYPE_CHECKING:
    from app.core.postgres_runner import PostgresRunner
    from app.core.sqlite_runner import SqliteRunner

__all__ = ["SCHEMA", "Database", "StorageUnavailable", "get_database", "get_db", "get_reading_db"]

P = ParamSpec("P")
T = TypeVar("T")

_POOL_WAIT_SECONDS = 5
_LAST_ANSWERS_SECONDS, _LAST_ANSWERS_PAUSE_SECONDS = 1.0, 0.005
_UNAVAILABLE_SQLSTATES = ("08", "53", "57P", "25006", "58")
"""Connection lost, out of resources, shut down by an operator, read-only standby, disk."""
_UNAVAILABLE_SQLITE = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_READONLY",
    "SQLITE_IOERR",
    "SQLITE_FULL",
    "SQLITE_CANTOPEN",
)


class StorageUnavailable(AppError):
    """The database cannot be used now."""

    kind = ErrorKind.UNAVAILABLE
    code = "storage-unavailable"

    def __init__(self) -> None:
        super().__init__(
            "The database did not answer. Nothing was stored; try again.", retry_after_seconds=1
        )


class Database:
    """Owns the connection pool for the life of the process."""

    def __init__(self, url: DatabaseUrl, *, pool_size: int = 10) -> None:
        """Prepare a pool; nothing is connected yet.

        Half of `pool_size` is for turns and half for the rest, so that neither starves the other.
        """
        self.url = url
        self.is_sqlite = url.is_sqlite
        for_turns = max(1, pool_size // 2)
        self.engine = (
            _sqlite_engine(url)
            if url.is_sqlite
            else _postgres_engine(url, max(1, pool_size - for_turns))
        )
        self._confinement = Confinement(is_there=not url.is_sqlite)
        if not url.is_sqlite:
            event.listen(self.engine.sync_engine, "begin", self._confine)
        self._reading_engine = self.engine.execution_options(read_only=True)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._reading_sessions = async_sessionmaker(self._reading_engine, expire_on_commit=False)
        # SQLite has one writer at a time: waiting here is fair, waiting in SQLite is not.
        self._writer = anyio.Lock(fast_acquire=True) if self.is_sqlite else nullcontext()
        # Each runner loads its driver, some two megabytes: only one of them is needed.
        dialect, dsn = self.engine.dialect, url.dsn
        self._sqlite = (
            _sqlite_runner(url.sqlite_path, dialect, self._writer) if url.sqlite_path else None
        )
        self._postgres = (
            _postgres_runner(dsn, dialect, for_turns, self._confinement) if dsn else None
        )

    @classmethod
    def from_settings(cls, settings: Settings) -> "Database":
        """Build the pool that `settings` describe; without a URL, a file in the data folder."""
        return cls(settings.parsed_database_url, pool_size=settings.database_pool_size)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        """Commit when the block ends, roll back when it raises.

        Cancellation waits for the end of the block: a query cut off in the middle costs its
        connection. So the block must be short, and wait for nothing but the database. Raises
        `StorageUnavailable` when the database cannot be reached; after a failed commit nobody
        can tell whether it happened.
        """
        with anyio.CancelScope(shield=True):
            async with self._writer:
                with _storage_errors():
                    await self._know_role()
                    async with self._sessions.begin() as db:
                        yield db

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[AsyncSession]:
        """Like `transaction`, for blocks that only read: on SQLite they do not queue."""
        with anyio.CancelScope(shield=True):
            with _storage_errors():
                await self._know_role()
                async with self._reading_sessions.begin() as db:
                    yield db

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[AsyncConnection]:
        """Like `transaction`, without the ORM, and as the tables' owner: for migrations."""
        with anyio.CancelScope(shield=True):
            async with self._writer:
                with _storage_errors():
                    owners = self.engine.execution_options(as_owner=True)
                    async with owners.begin() as connection:
                        yield connection

    async def run(
        self,
        program: Callable[P, Program[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run a program in a transaction of its own and return its result, committed.

        It may be run more than once, but only one of them commits. Cancellation waits for its
        end. Raises what it raises, and `StorageUnavailable` as `transaction` does.
        """
        with anyio.CancelScope(shield=True), _storage_errors():
            if self._postgres:
                await self._know_role()
                return await self._postgres.run(lambda: program(*args, **kwargs))
            promise = Promise()
            self._start((), lambda: program(*args, **kwargs), promise)
            return await promise.result()
        raise AssertionError("nobody cancels the scope")

    async def run_with(
        self,
        locks: Locks,
        make: Callable[[], Program[T]],
        then: Callable[[T], Any] | None = None,
    ) -> Any:  # noqa: ANN401  # the program's result, or that of `then`
        """Run the program that `make` returns, perhaps in one transaction with others.

        `locks` names all that it waits for. It goes on where the caller is cancelled: `then` gets
        its result in the moment of the commit, and what that returns is returned here. Else like
        `run`.
        """
        with _storage_errors():
            if self._confinement.wants_to_know:
                await self._know_role()
            promise = Promise(then)
            self._start(locks, make, promise)
            return await promise.result()

    def _start(self, locks: Locks, make: Callable[[], Program[Any]], promise: Promise) -> None:
        if self._postgres:
            self._postgres.start(make, locks, promise)
        elif self._sqlite:
            self._sqlite.start(make, promise)

    async def _know_role(self) -> None:
        """Look up, until it is there, whether transactions can take on the role of the policies."""
        if not self._confinement.wants_to_know:
            return
        async with self.engine.execution_options(as_owner=True).connect() as connection:
            found = await connection.scalar(text(ROLE_IS_THERE))
        self._confinement.learn(has_role=bool(found))

    def _confine(self, connection: Connection) -> None:
        if not connection.get_execution_options().get("as_owner"):
            connection.exec_driver_sql(self._confinement.query())

    def checked_out(self) -> int:
        """Return how many connections are in use."""
        pool: Any = self.engine.pool
        return pool.checkedout() + (self._postgres.checked_out if self._postgres else 0)

    async def dispose(self) -> None:
        """Close every connection; what is asked at this moment has a while to be answered.

        SQLAlchemy would give up a connection that is in use, and nobody would close it.
        """
        pool: Any = self.engine.pool
        with anyio.move_on_after(_LAST_ANSWERS_SECONDS):
            while pool.checkedout():  # noqa: ASYNC110  # SQLAlchemy has no event for it
                await anyio.sleep(_LAST_ANSWERS_PAUSE_SECONDS)
        if self._sqlite:
            await self._sqlite.close()
        if self._postgres:
            await self._postgres.close()
        await self.engine.dispose()


def _postgres_engine(url: DatabaseUrl, pool_size: int) -> AsyncEngine:
    connect_args: dict[str, Any] = {
        "dsn": url.dsn.get_secret_value() if url.dsn else None,
        # A transaction pooler may change the server connection between
        # statements, so none may be prepared ahead.
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "timeout": 10,
        "command_timeout": 30,
    }
    return create_async_engine(
        "postgresql+asyncpg://",
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_SECONDS,
        pool_recycle=1800,
        pool_use_lifo=True,
        connect_args=connect_args,
        hide_parameters=True,  # in errors, which are logged
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
    )


def _sqlite_engine(url: DatabaseUrl) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(url.sqlite_path)),
        hide_parameters=True,  # in errors, which are logged
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
        execution_options={"schema_translate_map": {SCHEMA: None}},
    )
    engine.dialect.default_schema_name = "main"  # programs compile before SQLAlchemy connects
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _sqlite_runner(
    path: Path, dialect: Dialect, writer: AbstractAsyncContextManager[object]
) -> "SqliteRunner":
    from app.core.sqlite_runner import SqliteRunner

    return SqliteRunner(path, dialect, writer)


def _postgres_runner(
    dsn: SecretStr, dialect: Dialect, size: int, confinement: Confinement
) -> "PostgresRunner":
    from app.core.postgres_runner import PostgresRunner

    return PostgresRunner(dsn.get_secret_value(), dialect, size, confinement)


def _to_json(value: object) -> str:
    return orjson.dumps(value).decode()


def _prepare_sqlite(dbapi_connection: DBAPIConnection, _record: object) -> None:
    from app.core.sqlite_runner import prepare_sqlite

    dbapi_connection.isolation_level = None  # we say BEGIN ourselves
    try:
        prepare_sqlite(dbapi_connection)
    except BaseException:  # SQLAlchemy does not know of it yet, so nobody else closes it
        dbapi_connection.close()
        raise


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes fails as locked unless it says so at once.
    read_only = connection.get_execution_options().get("read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class _storage_errors:  # noqa: N801  # reads as the context it is
    """Turn "cannot be reached" failures of any driver into `StorageUnavailable`."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and _is_unavailable(error):
            raise StorageUnavailable from error


def _is_unavailable(error: BaseException) -> bool:
    if isinstance(error, exc.DBAPIError):
        driver_error: Any = error.orig
        return (
            error.connection_invalidated
            or isinstance(error, exc.InterfaceError)
            or isinstance(driver_error, (OSError, TimeoutError))
            or _is_unavailable_driver(driver_error)
        )
    # The drivers raise these bare when the server is down; theirs come from programs.
    return isinstance(error, (OSError, TimeoutError, exc.TimeoutError)) or _is_unavailable_driver(
        error
    )


def _is_unavailable_driver(error: BaseException) -> bool:
    state = getattr(error, "sqlstate", None)
    sqlite_name = getattr(error, "sqlite_errorname", None)
    return (
        (isinstance(state, str) and state.startswith(_UNAVAILABLE_SQLSTATES))
        or (isinstance(sqlite_name, str) and sqlite_name.startswith(_UNAVAILABLE_SQLITE))
        or (type(error).__module__.startswith("asyncpg") and state is None)
    )


async def get_database(connection: HTTPConnection) -> Database:
    """Return the `Database` that the lifespan put on the application."""
    database: Database = connection.state.database
    return database


async def get_db(
    database: Annotated[Database, Depends(get_database)],
) -> AsyncIterator[AsyncSession]:
    """Yield the request's one transaction."""
    async with database.transaction() as db:
        yield db


async def get_reading_db(
    database: Annotated[Database, Depends(get_database)],
) -> AsyncIterator[AsyncSession]:
    """Yield the request's one transaction, for endpoints that only read."""
    async with database.reading() as db:
        yield db
