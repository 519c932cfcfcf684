"""Transactions whose statements go straight to the driver, for what every turn does.

A transaction is a generator: it yields statements and is sent their rows. It knows no driver
and waits for nothing else, so that SQLite can commit several at once, and Postgres needs no more
round trips than there are statements.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Dialect, Float, Integer, Numeric
from sqlalchemy.sql import ClauseElement

SCHEMA = "agent_platform"
"""The Postgres schema of every table; never `public`, which Supabase publishes. SQLite has none."""

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement as a driver takes it."""

    sql: str
    parameters: tuple[tuple[str, Any, Convert | None], ...]
    """Name, value where it is fixed, and how it is written, in the order of the SQL."""
    columns: tuple[Convert | None, ...]
    """How the columns of a row are read."""

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """Return the values of the SQL's places, as the driver takes them."""
        values: list[Any] = []
        for name, fixed, convert in self.parameters:
            value = parameters.get(name, fixed)
            values.append(convert(value) if convert else value)
        return values

    def read(self, rows: Sequence[Sequence[Any]]) -> Rows:
        """Return what the driver found, in Python's types."""
        columns = self.columns
        return [
            tuple(
                convert(value) if convert and value is not None else value
                for value, convert in zip(row, columns, strict=True)
            )
            for row in rows
        ]


@dataclass(slots=True)
class Direct:
    """One statement, compiled at its first use for each database. `build` makes it."""

    build: Callable[[Dialect], ClauseElement]
    _compiled: dict[str, Compiled] = field(default_factory=dict[str, Compiled])

    def __call__(self, **parameters: Any) -> "Statement":
        """Return the statement with values, to be yielded."""
        return self, parameters

    def compiled(self, dialect: Dialect) -> Compiled:
        """Return the statement for `dialect`."""
        return self._compiled.get(dialect.name) or self._compile(dialect)

    def _compile(self, dialect: Dialect) -> Compiled:
        schemas = None if dialect.name == "postgresql" else {SCHEMA: None}
        sql: Any = self.build(dialect).compile(
            dialect=dialect,
            schema_translate_map=schemas,
            render_schema_translate=bool(schemas),
        )
        fixed: dict[str, Any] = dict(sql.params)
        result_columns: Sequence[Any] = sql._result_columns or ()  # noqa: SLF001  # no public name
        compiled = Compiled(
            sql=sql.string,
            parameters=tuple(
                (name, fixed.get(name), _writer(sql.binds[name].type, dialect))
                for name in sql.positiontup
            ),
            columns=tuple(_reader(column.type, dialect) for column in result_columns),
        )
        self._compiled[dialect.name] = compiled
        return compiled


Statement = tuple[Direct, Mapping[str, Any]]
Program = Generator[Sequence[Statement], list[Rows], T]
"""A transaction: yields statements, is sent the rows of each, and returns what came of them."""


def one(statement: Statement) -> Generator[Sequence[Statement], list[Rows], Rows]:
    """Yield a single statement; `yield from` it to have its rows."""
    (rows,) = yield [statement]
    return rows


def _writer(kind: Any, dialect: Dialect) -> Convert | None:  # noqa: ANN401  # a column's type
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _reader(kind: Any, dialect: Dialect) -> Convert | None:  # noqa: ANN401  # a column's type
    if isinstance(kind, (Integer, Numeric, Float)):  # both drivers read numbers as numbers
        return None
    return kind.dialect_impl(dialect).result_processor(dialect, None)
