"""Transaction scripts: generators that yield prepared statements and are sent their rows.

A script knows no driver and waits for nothing but its statements, so that SQLite can commit
several at once, and Postgres needs no more round trips than there are statements.
"""

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from app.core.database.statements import Rows, Statement

T = TypeVar("T")

TransactionScript = Generator[Sequence[Statement], list[Rows], T]
"""A transaction: yields sequences of statements, is sent the rows of each, returns a result."""

LockKeys = tuple[Any, ...]
"""What a script locks, as sortable values such as a session's id.
Scripts without a common key may share a transaction."""


def fetch_one(statement: Statement) -> Generator[Sequence[Statement], list[Rows], Rows]:
    """Yield a single statement and return its rows; a script calls it with `yield from`."""
    (rows,) = yield [statement]
    return rows
