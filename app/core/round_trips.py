"""What a program asks at once, in as few round trips as Postgres allows.

Neighbours that change different tables become one statement, all but one of them as CTEs. They
are then executed at once, on one view of the data, as a program that yields them together expects.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Dialect

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
            values += compiled.values({**asked[place][1], "number_": number})
        return values

    def read(self, rows: Sequence[Sequence[Any]], found: list[Rows]) -> None:
        """Put what the driver found in its place of `found`."""
        place, compiled = self.parts[-1]
        found[place] = compiled.read(rows)


@dataclass(slots=True)
class RoundTrips:
    """Plans round trips, each combination of statements once."""

    dialect: Dialect
    _plans: dict[tuple[tuple[int, ...], bool], tuple[RoundTrip, ...]] = field(
        default_factory=dict[tuple[tuple[int, ...], bool], tuple[RoundTrip, ...]]
    )

    def plan(self, asked: Sequence[Statement], *, numbered: bool = False) -> tuple[RoundTrip, ...]:
        """Return the round trips of what a program yields; for `numbered` see `Direct.compiled`."""
        statements = [statement for statement, _ in asked]
        # A `Direct` is a constant of its module: it lives, and keeps its id, for ever.
        key = (tuple(map(id, statements)), numbered)
        return self._plans.get(key) or self._plans.setdefault(
            key, tuple(self._planned(statements, numbered=numbered))
        )

    def _planned(self, statements: Sequence[Direct], *, numbered: bool) -> Iterable[RoundTrip]:
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


def _renumbered(sql: str, count: int) -> str:
    return _PLACE.sub(lambda match: f"${int(match[1]) + count}", sql) if count else sql
