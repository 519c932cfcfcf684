"""Statements that go straight to the driver, inside a transaction that SQLAlchemy holds.

SQLAlchemy compiles each once and says how values are written and read; running it costs the
driver alone. For the few statements of every turn, where the rest was most of the cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Dialect, Float, Integer, Numeric
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import ClauseElement

from app.core.database import SCHEMA

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    parameters: tuple[tuple[str, Any, Convert | None], ...]
    """Name, value where it is fixed, and how it is written, in the order of the SQL."""
    columns: tuple[Convert | None, ...]


@dataclass(slots=True)
class Direct:
    """One statement, compiled at its first use for each database. `build` makes it."""

    build: Callable[[Dialect], ClauseElement]
    _compiled: dict[str, _Compiled] = field(default_factory=dict[str, _Compiled])

    async def run(
        self, connection: AsyncConnection, parameters: Mapping[str, Any]
    ) -> list[tuple[Any, ...]]:
        """Return the rows. Something must have begun the transaction: SQLAlchemy does not know.

        Raises the driver's own errors, which `Database.connection()` understands.
        """
        return (await run_all(connection, [(self, parameters)]))[0]

    def prepare(
        self, dialect: Dialect, parameters: Mapping[str, Any]
    ) -> tuple[_Compiled, list[Any]]:
        """Return the compiled statement and its values, as the driver takes them."""
        compiled = self._compiled.get(dialect.name) or self._compile(dialect)
        values: list[Any] = []
        for name, fixed, convert in compiled.parameters:
            value = parameters.get(name, fixed)
            values.append(convert(value) if convert else value)
        return compiled, values

    def _compile(self, dialect: Dialect) -> _Compiled:
        schemas = None if dialect.name == "postgresql" else {SCHEMA: None}
        statement = self.build(dialect)
        sql: Any = statement.compile(
            dialect=dialect,
            schema_translate_map=schemas,
            render_schema_translate=bool(schemas),
        )
        fixed: dict[str, Any] = dict(sql.params)
        compiled = _Compiled(
            sql=sql.string,
            parameters=tuple(
                (name, fixed.get(name), _writer(sql.binds[name].type, dialect))
                for name in sql.positiontup
            ),
            columns=tuple(_reader(column.type, dialect) for column in _result_columns(sql)),
        )
        self._compiled[dialect.name] = compiled
        return compiled


async def run_all(
    connection: AsyncConnection, work: Sequence[tuple[Direct, Mapping[str, Any]]]
) -> list[list[tuple[Any, ...]]]:
    """Run statements in their order and return the rows of each; on SQLite in one visit.

    A visit to SQLite's thread costs more than a statement. Raises as `Direct.run`.
    """
    dialect = connection.dialect
    prepared = [statement.prepare(dialect, parameters) for statement, parameters in work]
    sync_connection: Any = connection.sync_connection
    driver: Any = sync_connection.connection.driver_connection
    found: list[Sequence[Any]]
    if dialect.name == "postgresql":
        found = [await driver.fetch(compiled.sql, *values) for compiled, values in prepared]
    else:

        def visit() -> list[Sequence[Any]]:
            database: Any = driver._conn  # noqa: SLF001  # the sqlite3 connection of this thread
            return [
                database.execute(compiled.sql, values).fetchall() for compiled, values in prepared
            ]

        found = await driver._execute(visit)  # noqa: SLF001  # how aiosqlite runs all of its own
    return [
        [_read(row, compiled.columns) for row in rows]
        for (compiled, _), rows in zip(prepared, found, strict=True)
    ]


def _result_columns(sql: Any) -> Sequence[Any]:  # noqa: ANN401  # SQLAlchemy types it loosely
    return list(sql._result_columns or ())  # noqa: SLF001  # no public name for what is returned


def _read(row: Sequence[Any], columns: Sequence[Convert | None]) -> tuple[Any, ...]:
    return tuple(
        convert(value) if convert else value for value, convert in zip(row, columns, strict=True)
    )


def _writer(kind: Any, dialect: Dialect) -> Convert | None:  # noqa: ANN401  # a column's type
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _reader(kind: Any, dialect: Dialect) -> Convert | None:  # noqa: ANN401  # a column's type
    if isinstance(kind, (Integer, Numeric, Float)):  # both drivers read numbers as numbers
        return None
    return kind.dialect_impl(dialect).result_processor(dialect, None)
