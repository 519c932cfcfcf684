"""Transactions whose statements go straight to the driver, for what every turn does.

A transaction is a generator: it yields statements and is sent their rows. It knows no driver
and waits for nothing else, so that SQLite can commit several at once, and Postgres needs no more
round trips than there are statements.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import UUID

from sqlalchemy import (
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
Convert = Callable[[Any], Any]
Pick = Callable[[Mapping[str, Any]], Sequence[Any]]


NUMBER = "number_"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A statement as a driver takes it."""

    sql: str
    parameters: tuple[str, ...]
    """Their names, in the order of the SQL's places."""
    fixed: Mapping[str, Any]
    """Their values, where nobody gives another."""
    writers: tuple[tuple[int, Convert], ...]
    """The places whose values the driver takes in another form."""
    columns: tuple[Convert | None, ...]
    """How the columns of a row are read."""
    changes: str | None = None
    """The table that it changes."""
    pick: Pick = field(init=False, compare=False)
    """Takes the values of `parameters`, in their order."""

    def __post_init__(self) -> None:
        """Prepare what is done each time."""
        object.__setattr__(self, "pick", _picker(self.parameters))

    def values(self, parameters: Mapping[str, Any], number: int = 0) -> list[Any]:
        """Return the values of the SQL's places, as the driver takes them."""
        values = list(self.pick({**self.fixed, **parameters, NUMBER: number}))
        for place, convert in self.writers:
            values[place] = convert(values[place])
        return values

    def read(self, rows: Sequence[Sequence[Any]], start: int = 0) -> Rows:
        """Return what the driver found, in Python's types; the columns begin at `start`."""
        columns = self.columns
        if not any(columns):
            if not start and rows and type(rows[0]) is tuple:  # SQLite's are it already
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
class Direct:
    """One statement, compiled at its first use for each database. `build` makes it.

    `is_as_seen` is for a change that locks a row: the condition that nobody has changed the row
    since the moment whose data the statement sees. Then Postgres is asked at once for it and for
    the question that a program yields with it, which must not be about what it changes; where
    the condition fails, they are asked again, one after the other.
    """

    build: Callable[[Dialect], ClauseElement]
    is_as_seen: Callable[[], ColumnElement[bool]] | None = None
    _compiled: dict[tuple[str, bool, bool], Compiled] = field(
        default_factory=dict[tuple[str, bool, bool], Compiled]
    )

    def __call__(self, **parameters: Any) -> "Statement":
        """Return the statement with values, to be yielded."""
        return self, parameters

    def compiled(
        self, dialect: Dialect, *, numbered: bool = False, as_seen: bool = False
    ) -> Compiled:
        """Return the statement for `dialect`.

        Where it is `numbered`, its rows end with the parameter `NUMBER`, which is not read: it
        says whose they are when the statement is run for many. `as_seen` adds that condition.
        """
        key = (dialect.name, numbered, as_seen)
        return self._compiled.get(key) or self._compiled.setdefault(
            key, self._compile(dialect, numbered=numbered, as_seen=as_seen)
        )

    def _compile(self, dialect: Dialect, *, numbered: bool, as_seen: bool) -> Compiled:
        schemas = None if dialect.name == "postgresql" else {SCHEMA: None}
        statement: Any = self.build(dialect)
        if as_seen and self.is_as_seen:
            statement = statement.where(self.is_as_seen())
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
        writers = [_writer(sql.binds[name].type, dialect) for name in sql.positiontup]
        result_columns: Sequence[Any] = sql._result_columns or ()  # noqa: SLF001  # no public name
        is_change = isinstance(statement, UpdateBase)
        compiled = Compiled(
            sql=sql.string,
            parameters=tuple(sql.positiontup),
            fixed=dict(sql.params),
            writers=tuple((place, convert) for place, convert in enumerate(writers) if convert),
            columns=tuple(_reader(column.type, dialect) for column in result_columns),
            changes=str(statement.table) if is_change else None,
        )
        if numbered and compiled.columns:
            return replace(compiled, columns=compiled.columns[:-1])
        return compiled


Statement = tuple[Direct, Mapping[str, Any]]
Program = Generator[Sequence[Statement], list[Rows], T]
"""A transaction: yields statements, is sent the rows of each, and returns what came of them."""

Locks = tuple[Any, ...]
"""What a program waits for that others may hold: values that can be sorted, such as a session's id.
Programs with no lock in common may share a transaction."""


def one(statement: Statement) -> Generator[Sequence[Statement], list[Rows], Rows]:
    """Yield a single statement; `yield from` it to have its rows."""
    (rows,) = yield [statement]
    return rows


def upsert(dialect: Dialect, table: TableClause) -> "postgresql.Insert | sqlite.Insert":
    """Return an INSERT that can say ON CONFLICT; the database that is not used is not loaded."""
    if dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert
    return insert(table)


def _picker(names: Sequence[str]) -> Pick:
    if len(names) > 1:
        return itemgetter(*names)  # which gives a row only of several
    return lambda known: [known[name] for name in names]


def _writer(kind: Any, dialect: Dialect) -> Convert | None:  # noqa: ANN401  # a column's type
    if isinstance(kind, Enum) and issubclass(kind.enum_class or object, str):
        return None  # its members are what is stored
    if dialect.name == "sqlite":  # what SQLAlchemy would write, in a third of the time
        if isinstance(kind, Uuid):
            return _hex
        if isinstance(getattr(kind, "impl", kind), DateTime):
            return _without_zone
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _hex(value: UUID | None) -> str | None:
    return None if value is None else f"{value.int:032x}"


@lru_cache(maxsize=64)  # one moment goes into several columns
def _without_zone(value: datetime | None) -> str | None:
    return None if value is None else value.replace(tzinfo=None).isoformat(" ", "microseconds")


def _reader(kind: Any, dialect: Dialect) -> Convert | None:  # noqa: ANN401  # a column's type
    if isinstance(kind, (Integer, Numeric, Float)):  # both drivers read numbers as numbers
        return None
    return kind.dialect_impl(dialect).result_processor(dialect, None)
