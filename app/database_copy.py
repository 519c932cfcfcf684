"""`agent-platform copy-database`: every row of one database into another, such as from SQLite."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import anyio
from pydantic import SecretStr
from sqlalchemy import LargeBinary, Table, func, select, tuple_

from app.core.config import Settings, load_settings
from app.core.database import Database
from app.core.database.file_lock import exclusive_file_lock
from app.core.database.migrations import upgrade
from app.core.database.revision import RevisionCheck
from app.core.database.url import DatabaseUrl, InvalidDatabaseUrl
from app.core.errors import AppError, StartRefused
from app.models import Base

_PAGE_BYTES = 4_000_000
_PAGE_ROWS = 500
_APPEND_ONLY = {"audit_log"}
"""PostgreSQL refuses to change their rows."""


def run(source_url: str | None, target_url: str | None) -> int:
    """Copy the SQLite file of `DATA_DIR` to `DATABASE_URL`, unless other URLs are given.

    Return the process's exit status. A second run continues one that was interrupted.
    """
    settings = load_settings()
    try:
        source, target = _parse(settings, source_url, target_url)
        with ExitStack() as stack:
            for path in filter(None, (source.sqlite_path, target.sqlite_path)):
                stack.enter_context(exclusive_file_lock(path))
            target_settings = settings.model_copy(update={"database_url": SecretStr(_text(target))})
            return anyio.run(_copy, source, target_settings)
    except (InvalidDatabaseUrl, StartRefused) as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_USAGE
    except AppError as error:
        sys.stderr.write(f"{error.detail}\n")
        return os.EX_TEMPFAIL


def _parse(
    settings: Settings, source_url: str | None, target_url: str | None
) -> tuple[DatabaseUrl, DatabaseUrl]:
    """Return where to copy from and to. Raises `InvalidDatabaseUrl` and `StartRefused`."""
    given = SecretStr(target_url) if target_url else settings.database_url
    if given is None:
        raise StartRefused("Name the target: --to postgresql://..., or DATABASE_URL.")
    source = DatabaseUrl.parse(SecretStr(source_url) if source_url else None, settings.data_dir)
    target = DatabaseUrl.parse(given, settings.data_dir)
    if source.sqlite_path and not source.sqlite_path.exists():
        raise StartRefused(f"There is no database file {source.sqlite_path.absolute()}.")
    if _text(source) == _text(target):
        raise StartRefused("Source and target are the same database.")
    return source, target


def _text(url: DatabaseUrl) -> str:
    if url.dsn:
        return url.dsn.get_secret_value()
    return f"sqlite:///{url.sqlite_path.resolve() if url.sqlite_path else ''}"


async def _copy(source_url: DatabaseUrl, target_settings: Settings) -> int:
    source = Database(source_url)
    target = Database.from_settings(target_settings)
    try:
        await RevisionCheck(source).require()
        await anyio.to_thread.run_sync(upgrade, target_settings)
        differing: list[str] = []
        for table in Base.metadata.sorted_tables:
            await _copy_table(source, target, table)
            counts = [await _count(database, table) for database in (source, target)]
            sys.stderr.write(f"{table.name}: {counts[1]} of {counts[0]} rows\n")
            if counts[0] != counts[1]:
                differing.append(f"{table.name} has {counts[1]} rows, not {counts[0]}")
    finally:
        await source.dispose()
        await target.dispose()
    if differing:
        sys.stderr.write(
            f"The copy is not complete: {'; '.join(differing)}. Stop every server that uses one "
            "of the databases, and use a target that has no other data.\n"
        )
        return os.EX_DATAERR
    sys.stderr.write(f"Copied {source_url} to {target_settings.parsed_database_url}.\n")
    return 0


async def _copy_table(source: Database, target: Database, table: Table) -> None:
    """Copy in pages along the primary key, so that memory does not grow with the table."""
    key = list(table.primary_key.columns)
    has_bytes = any(isinstance(column.type, LargeBinary) for column in table.columns)
    limit = 1 if has_bytes else _PAGE_ROWS
    last: Sequence[Any] | None = None
    while True:
        query = select(table).order_by(*key).limit(limit)
        if last is not None:
            query = query.where(tuple_(*key) > tuple_(*last))
        async with source.reading() as db:
            rows = [dict(row) for row in (await db.execute(query)).mappings()]
        if not rows:
            return
        await _store(target, table, rows)
        last = [_bound(column, rows[-1][column.name]) for column in key]
        limit = max(1, min(_PAGE_ROWS, _PAGE_BYTES * len(rows) // _size_bytes(rows)))


def _bound(column: Any, value: object) -> Any:  # noqa: ANN401  # SQLAlchemy's own types
    from sqlalchemy import literal

    return literal(value, column.type)


async def _store(target: Database, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows; those that an earlier run stored become as they are in the source now."""
    if target.is_sqlite:
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert
    statement: Any = insert(table)
    key = [column.name for column in table.primary_key.columns]
    rest = [column.name for column in table.columns if column.name not in key]
    if table.name in _APPEND_ONLY or not rest:
        statement = statement.on_conflict_do_nothing(index_elements=key)
    else:
        changed = {name: statement.excluded[name] for name in rest}
        statement = statement.on_conflict_do_update(index_elements=key, set_=changed)
    async with target.transaction() as db:
        await db.execute(statement, rows)


def _size_bytes(rows: Sequence[dict[str, Any]]) -> int:
    values = (value for row in rows for value in row.values())
    return 1 + sum(len(value) for value in values if isinstance(value, (bytes, str)))


async def _count(database: Database, table: Table) -> int:
    async with database.reading() as db:
        return await db.scalar(select(func.count()).select_from(table)) or 0
