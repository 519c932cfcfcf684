"""What a program asks at once, in as few round trips as Postgres allows.

Neighbours that change different tables become one statement, all but one of them as CTEs. They
are then executed at once, on one view of the data, as a program that yields them together expects.

A lock and the question after it are one statement, too, although that sees the data of the moment
before the lock was waited for: it says so where the locked row has changed since.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Dialect
from typing_extensions import override

from app.core.direct import Compiled, Direct, Rows, Statement

_PLACE = re.compile(r"\$(\d+)")


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """One SQL statement, made of one or several of a program's."""

    sql: str
    parts: tuple[tuple[int, Compiled], ...]
    """The program's statements and their places in what it yielded; only the last returns rows."""

    def values(self, asked: Sequence[Statement], number: int = 0) -> list[Any]:
        """Return the values of the SQL's places; `number` is for those that are numbered."""
        values: list[Any] = []
        for place, compiled in self.parts:
            values += compiled.values(asked[place][1], number)
        return values

    def read(self, rows: Sequence[Sequence[Any]], found: list[Rows]) -> bool:
        """Put what the driver found in its place of `found`.

        False says that nothing was done, and that each statement must be asked for itself.
        """
        place, compiled = self.parts[-1]
        found[place] = compiled.read(rows)
        return True


@dataclass(frozen=True, slots=True)
class LockAndQuestion(RoundTrip):
    """Each row begins with 0 for the lock, 1 for the question; then come the columns of both."""

    @override
    def read(self, rows: Sequence[Sequence[Any]], found: list[Rows]) -> bool:
        """As `RoundTrip`. False where the row to lock has changed meanwhile, or is not there."""
        (_, lock), (_, question) = self.parts
        locked = [row for row in rows if row[0] == 0]
        answers = [row for row in rows if row[0] == 1]
        found[:] = lock.read(locked, 1), question.read(answers, 1 + len(lock.columns))
        return bool(locked)


@dataclass(slots=True)
class RoundTrips:
    """Plans round trips, each combination of statements once."""

    dialect: Dialect
    _plans: dict[tuple[tuple[int, ...], bool, bool], tuple[RoundTrip, ...]] = field(
        default_factory=dict[tuple[tuple[int, ...], bool, bool], tuple[RoundTrip, ...]]
    )

    def plan(
        self, asked: Sequence[Statement], *, numbered: bool = False, locking_apart: bool = False
    ) -> tuple[RoundTrip, ...]:
        """Return the round trips of what a program yields; for `numbered` see `Direct.compiled`.

        `locking_apart` takes a lock before what comes after it is asked.
        """
        statements = [statement for statement, _ in asked]
        # A `Direct` is a constant of its module: it lives, and keeps its id, for ever.
        key = (tuple(map(id, statements)), numbered, locking_apart)
        return self._plans.get(key) or self._plans.setdefault(
            key, tuple(self._planned(statements, numbered=numbered, locking_apart=locking_apart))
        )

    def _planned(
        self, statements: Sequence[Direct], *, numbered: bool, locking_apart: bool
    ) -> Iterable[RoundTrip]:
        if len(statements) == 2 and statements[0].is_as_seen and not locking_apart:  # noqa: PLR2004
            lock = statements[0].compiled(self.dialect, numbered=numbered, as_seen=True)
            question = statements[1].compiled(self.dialect, numbered=numbered)
            if question.changes is None:
                yield _lock_and_question(lock, question, numbered=numbered)
                return
        group: list[tuple[int, Compiled]] = []
        for place, statement in enumerate(statements):
            compiled = statement.compiled(self.dialect, numbered=numbered)
            if group and not _fit([*(part for _, part in group), compiled]):
                yield _joined(group)
                group = []
            group.append((place, compiled))
        if group:
            yield _joined(group)


def _fit(parts: Sequence[Compiled]) -> bool:
    """Tell whether statements may be one: their order must not matter."""
    tables = {part.changes for part in parts}
    has_one_answer = sum(bool(part.columns) for part in parts) <= 1
    return has_one_answer and None not in tables and len(tables) == len(parts)


def _joined(group: Sequence[tuple[int, Compiled]]) -> RoundTrip:
    *before, last = sorted(group, key=lambda part: bool(part[1].columns))
    ctes: list[str] = []
    count = 0
    for number, (_, compiled) in enumerate(before):
        ctes.append(f"step_{number} AS ({_renumbered(compiled.sql, count)})")
        count += len(compiled.parameters)
    sql = _renumbered(last[1].sql, count)
    return RoundTrip(f"WITH {', '.join(ctes)} {sql}" if ctes else sql, (*before, last))


def _lock_and_question(lock: Compiled, question: Compiled, *, numbered: bool) -> RoundTrip:
    number = ["number"] if numbered else []
    ours = [f"l{column}" for column, _ in enumerate(lock.columns)]
    theirs = [f"q{column}" for column, _ in enumerate(question.columns)]
    lock_row = ", ".join(["0", *ours, *["NULL"] * len(theirs), *number])
    question_row = ", ".join(["1", *["NULL"] * len(ours), *theirs, *number])
    question_sql = _renumbered(question.sql, len(lock.parameters))
    ctes = (
        f"lock ({', '.join([*ours, *number])}) AS ({lock.sql})",
        f"question ({', '.join([*theirs, *number])}) AS ({question_sql})",
    )
    selects = (f"SELECT {lock_row} FROM lock", f"SELECT {question_row} FROM question")  # noqa: S608
    sql = f"WITH {', '.join(ctes)} {' UNION ALL '.join(selects)}"
    return LockAndQuestion(sql, ((0, lock), (1, question)))


def _renumbered(sql: str, count: int) -> str:
    return _PLACE.sub(lambda match: f"${int(match[1]) + count}", sql) if count else sql
