"""Combines the statements that a transaction script yields together into few round trips.

Adjacent statements that change different tables become one SQL statement, all but one of them as
CTEs. They then run on one snapshot, as a script that yields them together expects.

A statement that locks a row and the query after it are combined as well. Their snapshot is older
than the lock, so the combined statement reports whether the row has changed since the snapshot.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Dialect
from typing_extensions import override

from app.core.database.statements import CompiledStatement, PreparedStatement, Rows, Statement

_PLACE = re.compile(r"\$(\d+)")


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One SQL statement that combines one or several statements of a script."""

    sql: str
    parts: tuple[tuple[int, CompiledStatement], ...]
    """The statements, each with its index in what was yielded; only the last returns rows."""

    def values(self, statements: Sequence[Statement], number: int = 0) -> list[Any]:
        """Return the values of the SQL's parameters; `number` is the script's index in a batch."""
        values: list[Any] = []
        for place, compiled in self.parts:
            values += compiled.values(statements[place][1], number)
        return values

    def read(self, rows: Sequence[Sequence[Any]], results: list[Rows]) -> bool:
        """Store the driver's rows in `results`, at the index of their statement.

        Returns false if nothing was done and the statements must be run one by one.
        """
        place, compiled = self.parts[-1]
        results[place] = compiled.read(rows)
        return True


@dataclass(frozen=True, slots=True)
class LockThenSelect(RoundTrip):
    """A lock and a query as one statement.

    The first column of a row is 0 for the lock and 1 for the query; then come the columns of both.
    """

    @override
    def read(self, rows: Sequence[Sequence[Any]], results: list[Rows]) -> bool:
        """Store the rows of both; return false if the row to lock has changed or is missing."""
        (_, lock), (_, select) = self.parts
        lock_rows = [row for row in rows if row[0] == 0]
        select_rows = [row for row in rows if row[0] == 1]
        results[:] = lock.read(lock_rows, 1), select.read(select_rows, 1 + len(lock.column_readers))
        return bool(lock_rows)


@dataclass(slots=True)
class RoundTripPlanner:
    """Plans round trips and caches the plan of each combination of statements."""

    dialect: Dialect
    _plans: dict[tuple[tuple[int, ...], bool, bool], tuple[RoundTrip, ...]] = field(
        default_factory=dict[tuple[tuple[int, ...], bool, bool], tuple[RoundTrip, ...]]
    )

    def plan(
        self, yielded: Sequence[Statement], *, numbered: bool = False, locking_apart: bool = False
    ) -> tuple[RoundTrip, ...]:
        """Return the round trips for the statements that a script yielded together.

        For `numbered` see `PreparedStatement.compiled`. `locking_apart` sends a lock in a round
        trip of its own, before the query after it.
        """
        statements = [statement for statement, _ in yielded]
        # A `PreparedStatement` is a module-level constant, so its id is never reused.
        key = (tuple(map(id, statements)), numbered, locking_apart)
        return self._plans.get(key) or self._plans.setdefault(
            key, tuple(self._plan_trips(statements, numbered=numbered, locking_apart=locking_apart))
        )

    def _plan_trips(
        self, statements: Sequence[PreparedStatement], *, numbered: bool, locking_apart: bool
    ) -> Iterable[RoundTrip]:
        if len(statements) == 2 and statements[0].unchanged_since_snapshot and not locking_apart:  # noqa: PLR2004
            lock = statements[0].compiled(self.dialect, numbered=numbered, with_snapshot_check=True)
            select = statements[1].compiled(self.dialect, numbered=numbered)
            if select.changed_table is None:
                yield _lock_then_select(lock, select, numbered=numbered)
                return
        group: list[tuple[int, CompiledStatement]] = []
        for place, statement in enumerate(statements):
            compiled = statement.compiled(self.dialect, numbered=numbered)
            if group and not _can_be_joined([*(part for _, part in group), compiled]):
                yield _join_as_ctes(group)
                group = []
            group.append((place, compiled))
        if group:
            yield _join_as_ctes(group)


def _can_be_joined(parts: Sequence[CompiledStatement]) -> bool:
    """Return whether the statements' order does not matter and at most one returns rows."""
    tables = {part.changed_table for part in parts}
    has_one_result = sum(bool(part.column_readers) for part in parts) <= 1
    return has_one_result and None not in tables and len(tables) == len(parts)


def _join_as_ctes(group: Sequence[tuple[int, CompiledStatement]]) -> RoundTrip:
    *before, last = sorted(group, key=lambda part: bool(part[1].column_readers))
    ctes: list[str] = []
    count = 0
    for number, (_, compiled) in enumerate(before):
        ctes.append(f"step_{number} AS ({_renumber_parameters(compiled.sql, count)})")
        count += len(compiled.parameters)
    sql = _renumber_parameters(last[1].sql, count)
    return RoundTrip(f"WITH {', '.join(ctes)} {sql}" if ctes else sql, (*before, last))


def _lock_then_select(
    lock: CompiledStatement, select: CompiledStatement, *, numbered: bool
) -> RoundTrip:
    number = ["number"] if numbered else []
    lock_columns = [f"l{column}" for column, _ in enumerate(lock.column_readers)]
    select_columns = [f"q{column}" for column, _ in enumerate(select.column_readers)]
    lock_row = ", ".join(["0", *lock_columns, *["NULL"] * len(select_columns), *number])
    select_row = ", ".join(["1", *["NULL"] * len(lock_columns), *select_columns, *number])
    select_sql = _renumber_parameters(select.sql, len(lock.parameters))
    ctes = (
        f"lock ({', '.join([*lock_columns, *number])}) AS ({lock.sql})",
        f"selected ({', '.join([*select_columns, *number])}) AS ({select_sql})",
    )
    selects = (f"SELECT {lock_row} FROM lock", f"SELECT {select_row} FROM selected")  # noqa: S608
    sql = f"WITH {', '.join(ctes)} {' UNION ALL '.join(selects)}"
    return LockThenSelect(sql, ((0, lock), (1, select)))


def _renumber_parameters(sql: str, count: int) -> str:
    return _PLACE.sub(lambda match: f"${int(match[1]) + count}", sql) if count else sql
