"""Prepared statements of transaction scripts: compiled once by SQLAlchemy, sent to the driver.

They bypass SQLAlchemy's sessions and connections, for what every turn does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

import orjson
from sqlalchemy import (
    JSON,
    ColumnElement,
    DateTime,
    Dialect,
    Enum,
    Float,
    Integer,
    Numeric,
    Select,
    TableClause,
    UpdateBase,
    Uuid,
    bindparam,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.sql import ClauseElement

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

SCHEMA = "agent_platform"
"""The Postgres schema of every table; never `public`, which Supabase publishes. SQLite has none."""

T = TypeVar("T")
Rows = list[tuple[Any, ...]]
Converter = Callable[[Any], Any]
ParameterGetter = Callable[[Mapping[str, Any]], Sequence[Any]]


NUMBER = "number_"


@dataclass(frozen=True, slots=True)
class CompiledStatement:
    """SQL for one driver, with the conversions of its parameters and columns."""

    sql: str
    parameters: tuple[str, ...]
    """The names of the parameters, in the order of the SQL's placeholders."""
    defaults: Mapping[str, Any]
    """The values of parameters that the caller does not pass."""
    converters: tuple[tuple[int, Converter], ...]
    """The indexes of the parameters that must be converted for the driver, and how."""
    column_readers: tuple[Converter | None, ...]
    """How each column of a row is converted; `None` leaves it as it is."""
    changed_table: str | None = None
    """The table that the statement changes; `None` for a query."""
    parameter_getter: ParameterGetter = field(init=False, compare=False)
    """Returns the values of `parameters` in their order."""

    def __post_init__(self) -> None:
        """Build `parameter_getter` once."""
        object.__setattr__(self, "parameter_getter", _parameter_getter(self.parameters))

    def values(self, parameters: Mapping[str, Any], number: int = 0) -> list[Any]:
        """Return the values of the SQL's placeholders, converted for the driver."""
        values = list(self.parameter_getter({**self.defaults, **parameters, NUMBER: number}))
        for place, convert in self.converters:
            values[place] = convert(values[place])
        return values

    def read(self, rows: Sequence[Sequence[Any]], start: int = 0) -> Rows:
        """Return the driver's rows as tuples of Python values; the columns begin at `start`."""
        columns = self.column_readers
        if not any(columns):
            if not start and rows and type(rows[0]) is tuple:  # as SQLite's rows are
                return cast("Rows", rows)
            return [tuple(row[start : start + len(columns)]) for row in rows]
        return [
            tuple(
                convert(value) if convert and value is not None else value
                for value, convert in zip(row[start:], columns, strict=False)
            )
            for row in rows
        ]


@dataclass(slots=True)
class PreparedStatement:
    """A statement that `build` returns, compiled at its first use for each database.

    `unchanged_since_snapshot` is for a change that locks a row: the condition that no other
    transaction has changed the row since the statement's snapshot. With it, Postgres runs the
    change and the query that a script yields after it in one round trip; the query must not read
    what the change writes. Where the condition fails, the two are run again, one after the other.
    """

    build: Callable[[Dialect], ClauseElement]
    unchanged_since_snapshot: Callable[[], ColumnElement[bool]] | None = None
    _compiled: dict[tuple[str, bool, bool], CompiledStatement] = field(
        default_factory=dict[tuple[str, bool, bool], CompiledStatement]
    )

    def __call__(self, **parameters: Any) -> "Statement":
        """Return the statement with the values of its parameters, for a script to yield."""
        return self, parameters

    def compiled(
        self, dialect: Dialect, *, numbered: bool = False, with_snapshot_check: bool = False
    ) -> CompiledStatement:
        """Return the statement for `dialect`.

        If it is `numbered`, its rows end with the parameter `NUMBER`, which is not read: it is
        the index of the script in a batch that the row belongs to. `with_snapshot_check` adds the
        condition `unchanged_since_snapshot`.
        """
        key = (dialect.name, numbered, with_snapshot_check)
        return self._compiled.get(key) or self._compiled.setdefault(
            key, self._compile(dialect, numbered=numbered, with_snapshot_check=with_snapshot_check)
        )

    def _compile(
        self, dialect: Dialect, *, numbered: bool, with_snapshot_check: bool
    ) -> CompiledStatement:
        schemas = None if dialect.name == "postgresql" else {SCHEMA: None}
        statement: Any = self.build(dialect)
        if with_snapshot_check and self.unchanged_since_snapshot:
            statement = statement.where(self.unchanged_since_snapshot())
        number = sql_cast(bindparam(NUMBER, type_=Integer), Integer)
        if numbered and isinstance(statement, Select):
            statement = cast("Any", statement).add_columns(number)
        elif numbered and statement._returning:  # noqa: SLF001  # no public name
            statement = statement.returning(number)
        sql: Any = statement.compile(
            dialect=dialect,
            schema_translate_map=schemas,
            render_schema_translate=bool(schemas),
        )
        writers = [_parameter_converter(sql.binds[name].type, dialect) for name in sql.positiontup]
        result_columns: Sequence[Any] = sql._result_columns or ()  # noqa: SLF001  # no public name
        is_change = isinstance(statement, UpdateBase)
        compiled = CompiledStatement(
            sql=sql.string,
            parameters=tuple(sql.positiontup),
            defaults=dict(sql.params),
            converters=tuple((place, convert) for place, convert in enumerate(writers) if convert),
            column_readers=tuple(_column_reader(column.type, dialect) for column in result_columns),
            changed_table=str(statement.table) if is_change else None,
        )
        if numbered and compiled.column_readers:
            return replace(compiled, column_readers=compiled.column_readers[:-1])
        return compiled


Statement = tuple[PreparedStatement, Mapping[str, Any]]


def upsert(dialect: Dialect, table: TableClause) -> "postgresql.Insert | sqlite.Insert":
    """Return an INSERT with ON CONFLICT support; imports only the dialect that is used."""
    if dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    return insert(table)


def _parameter_getter(names: Sequence[str]) -> ParameterGetter:
    if len(names) > 1:
        return itemgetter(*names)  # with one name it would return the value, not a tuple
    return lambda values: [values[name] for name in names]


def _parameter_converter(kind: Any, dialect: Dialect) -> Converter | None:  # noqa: ANN401  # a column's type
    if isinstance(kind, Enum) and issubclass(kind.enum_class or object, str):
        return None  # members of a `StrEnum` are stored as they are
    is_time = isinstance(getattr(kind, "impl", kind), DateTime)
    if dialect.name == "sqlite":  # the same result as SQLAlchemy's, in a third of the time
        if isinstance(kind, Uuid):
            return _uuid_hex
        if is_time:
            return _naive_datetime
    elif is_time:
        return None  # asyncpg takes aware times of any zone
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _uuid_hex(value: UUID | None) -> str | None:
    return None if value is None else f"{value.int:032x}"


@lru_cache(maxsize=64)  # the same time is written to several columns
def _naive_datetime(value: datetime | None) -> str | None:
    if value is None:
        return None
    in_utc = value.astimezone(UTC) if value.tzinfo else value
    return in_utc.replace(tzinfo=None).isoformat(" ", "microseconds")


def _column_reader(kind: Any, dialect: Dialect) -> Converter | None:  # noqa: ANN401  # a column's type
    if isinstance(kind, (Integer, Numeric, Float)):  # both drivers return Python numbers
        return None
    impl = kind.dialect_impl(dialect)
    if dialect.name == "postgresql" and isinstance(getattr(impl, "impl", impl), JSON):
        return orjson.loads  # asyncpg returns text, unless SQLAlchemy prepared the connection
    return impl.result_processor(dialect, None)
