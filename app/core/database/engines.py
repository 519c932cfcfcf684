"""The SQLAlchemy engines for PostgreSQL and SQLite."""

from typing import Any
from unicodedata import normalize

import orjson
from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from app.core.database.statements import SCHEMA
from app.core.database.url import DatabaseUrl

POOL_WAIT_SECONDS = 5
HAS_WORDS = "has_words"
"""SQLite's own functions fold the letters of ASCII only."""


def postgres_engine(url: DatabaseUrl, pool_size: int) -> AsyncEngine:
    """Return an engine of at most `pool_size` connections that works behind PgBouncer."""
    connect_args: dict[str, Any] = {
        "dsn": url.dsn.get_secret_value() if url.dsn else None,
        # A transaction pooler may use another server connection for each transaction, so a
        # prepared statement may be missing on the next one.
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
        pool_timeout=POOL_WAIT_SECONDS,
        pool_recycle=1800,
        pool_use_lifo=True,
        connect_args=connect_args,
        hide_parameters=True,  # in errors, which are logged
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
    )


def sqlite_engine(url: DatabaseUrl) -> AsyncEngine:
    """Return an engine whose transactions begin as IMMEDIATE unless they only read."""
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(url.sqlite_path)),
        hide_parameters=True,  # in errors, which are logged
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
        execution_options={"schema_translate_map": {SCHEMA: None}},
    )
    # Transaction scripts compile statements before SQLAlchemy has connected.
    engine.dialect.default_schema_name = "main"
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _to_json(value: object) -> str:
    return orjson.dumps(value).decode()


def _has_words(text: str | None, words: str) -> bool:
    """Return whether `text` has all `words`, which are folded and separated by spaces."""
    folded = normalize("NFC", (text or "").casefold())
    return all(word in folded for word in words.split(" "))


def _prepare_sqlite(dbapi_connection: Any, _record: object) -> None:  # noqa: ANN401  # an adapter
    from app.core.database.sqlite_executor import prepare_sqlite

    dbapi_connection.isolation_level = None  # `_begin_sqlite` sends BEGIN
    try:
        prepare_sqlite(dbapi_connection)
        dbapi_connection.create_function(HAS_WORDS, 2, _has_words, deterministic=True)
    except BaseException:  # not in SQLAlchemy's pool yet, which would close it
        dbapi_connection.close()
        raise


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that first reads and then writes fails with SQLITE_BUSY unless it begins
    # as IMMEDIATE.
    read_only = connection.get_execution_options().get("read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
