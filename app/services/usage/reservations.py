"""Reservations of turns that go on: later steps reserve more, perhaps on another server."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import cast
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    Dialect,
    Table,
    and_,
    bindparam,
    case,
    or_,
    update,
)
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript
from app.core.limits import Limits
from app.models import Budget
from app.services.usage import budgets
from app.services.usage.accounts import Bucket, Reservation

_table = cast("Table", Budget.__table__)
_day = bindparam("day_", type_=Date())


def stored_limits(buckets: Sequence[Bucket]) -> dict[str, Sequence[str | None]]:
    """Return the limits of budgets as JSON, for a turn that reserves more later."""
    return {
        bucket.name: [
            None if value is None else str(value)
            for value in (
                bucket.limits.concurrent_turns,
                bucket.limits.upload_minutes_per_day,
                bucket.limits.tokens_per_day,
                bucket.limits.usd_per_day,
            )
        ]
        for bucket in buckets
    }


def stored_bucket(name: str, stored: Sequence[str | None] | None) -> Bucket:
    """Return the budget that `stored_limits` wrote; without limits where nothing is stored."""
    if stored is None:
        return Bucket(name)
    turns, minutes, tokens, usd = stored
    return Bucket(
        name,
        Limits(
            0,
            int(turns) if turns else 0,
            float(minutes) if minutes else 0,
            int(tokens) if tokens else 0,
            Decimal(usd) if usd else 0,
        ),
    )


def raise_reservation(
    workspace_id: UUID, reservation: Reservation, tokens: int, nanos: int
) -> TransactionScript[Reservation]:
    """Reserve more for a turn that goes on; return what it has reserved then.

    Raises `BudgetExhausted`; then the transaction must be rolled back.
    """
    raising = [
        _RAISE(
            workspace_id_=workspace_id,
            bucket_=bucket.name,
            day_=reservation.day,
            tokens_more_=tokens,
            nanos_more_=nanos,
            tokens_limit_=bucket.tokens_limit,
            nanos_limit_=bucket.nanos_limit,
        )
        for bucket in reservation.buckets
    ]
    answers = yield raising
    for bucket, rows in zip(reservation.buckets, answers, strict=True):
        if rows:
            continue
        (stored,) = yield [budgets.USED(workspace_id_=workspace_id, bucket_=bucket.name)]
        used_tokens, used_nanos = stored[0][2:] if stored else (0, 0)
        if used_tokens + tokens > bucket.tokens_limit:
            raise budgets.exhausted(bucket, "tokens", bucket.tokens_limit, used_tokens)
        raise budgets.exhausted(bucket, "nanos", bucket.nanos_limit, used_nanos)
    return replace(reservation, tokens=reservation.tokens + tokens, nanos=reservation.nanos + nanos)


def _amount(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=BigInteger())


def _raise_stmt(_dialect: Dialect) -> ClauseElement:
    """Reserve more if no limit of that day is exceeded; return a row if it is reserved."""
    columns = _table.c
    is_same_day = columns.day == _day
    grown = {
        name: columns[name] + case((is_same_day, _amount(f"{name}_more_")), else_=0)
        for name in ("tokens", "nanos")
    }
    return (
        update(_table)
        .where(budgets.is_account())
        .where(
            or_(
                columns.day != _day,
                and_(*(grown[name] <= _amount(f"{name}_limit_") for name in grown)),
            )
        )
        .values(**grown)
        .returning(columns.live_turns)
    )


_RAISE = PreparedStatement(_raise_stmt)
