"""Budgets of a day and the count of live turns: reserved at acceptance, settled with the turn.

One row for each account, changed by one statement in each of the turn's two transactions, last of
all, so that an account's turns wait for each other as shortly as can be.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import cast
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    Dialect,
    Table,
    Update,
    and_,
    bindparam,
    case,
    func,
    select,
    text,
    update,
)
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct, Program, Statement, upsert
from app.core.errors import AppError
from app.core.limits import Quota
from app.models import UNSETTLED, Budget, Turn, utc_now
from app.services.usage.accounts import Account, Reservation
from app.services.usage.errors import BudgetExhausted, TooManyTurns, UploadsExhausted
from app.services.usage.tariff import NANOS

_budgets = cast("Table", Budget.__table__)
_turns = cast("Table", Turn.__table__)
_AMOUNTS = ("upload_ms", "tokens", "nanos")
_day = bindparam("day_", type_=Date())


def _amount(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=BigInteger())


def _reserve(dialect: Dialect) -> ClauseElement:
    """Add to the account's row where every limit allows it; return a row if so.

    A row of an older day begins anew; one of a newer day is of a server whose clock is ahead.
    """
    columns = _budgets.c
    statement = upsert(dialect, _budgets).values(
        workspace_id=bindparam("workspace_id_", type_=columns.workspace_id.type),
        bucket=bindparam("bucket_", type_=columns.bucket.type),
        day=_day,
        live_turns=1,
        **{name: _amount(f"{name}_") for name in _AMOUNTS},
    )
    new = statement.excluded
    is_today = columns.day >= new.day
    grown = {name: case((is_today, columns[name]), else_=0) + new[name] for name in _AMOUNTS}
    return statement.on_conflict_do_update(
        index_elements=["workspace_id", "bucket"],
        set_={
            "day": case((is_today, columns.day), else_=new.day),
            "live_turns": columns.live_turns + 1,
            **grown,
        },
        where=and_(
            columns.live_turns < _amount("live_turns_limit_"),
            *(grown[name] <= _amount(f"{name}_limit_") for name in _AMOUNTS),
        ),
    ).returning(columns.live_turns)


def _settle(_dialect: Dialect) -> Update:
    """Replace what was reserved by what was used, and count one live turn less."""
    columns = _budgets.c
    is_same_day = columns.day == _day

    def changed(column: ColumnElement[int]) -> ColumnElement[int]:
        return column + case((is_same_day, _amount(f"{column.key}_more_")), else_=0)

    return (
        update(_budgets)
        .where(_is_account())
        .values(
            tokens=changed(columns.tokens),
            nanos=changed(columns.nanos),
            live_turns=case((columns.live_turns > 0, columns.live_turns - 1), else_=0),
        )
    )


def _is_account() -> ColumnElement[bool]:
    columns = _budgets.c
    return and_(
        columns.workspace_id == bindparam("workspace_id_", type_=columns.workspace_id.type),
        columns.bucket == bindparam("bucket_", type_=columns.bucket.type),
    )


def _used(_dialect: Dialect) -> ClauseElement:
    """Load what is used, in the order of `_daily`."""
    columns = _budgets.c
    return select(columns.day, columns.upload_ms, columns.tokens, columns.nanos).where(
        _is_account()
    )


def _count_live(_dialect: Dialect) -> ClauseElement:
    columns = _turns.c
    return (
        select(func.count())
        .select_from(_turns)
        .where(
            columns.workspace_id == bindparam("workspace_id_", type_=columns.workspace_id.type),
            func.coalesce(columns.key_id, "") == bindparam("bucket_", type_=columns.key_id.type),
            columns.reserved_day.is_not(None),
            text(UNSETTLED),
        )
    )


def _correct_live(_dialect: Dialect) -> Update:
    return update(_budgets).where(_is_account()).values(live_turns=_amount("live_"))


_RESERVE = Direct(_reserve)
_SETTLE = Direct(_settle)
_USED = Direct(_used)
_COUNT_LIVE = Direct(_count_live)
_CORRECT_LIVE = Direct(_correct_live)


def reserve(
    account: Account, reservation: Reservation | None, work: Sequence[Statement] = ()
) -> Program[None]:
    """Do `work` and keep `reservation`, in one step.

    Raises `TooManyTurns`, `UploadsExhausted` or `BudgetExhausted`; the transaction must end.
    """
    if reservation is None:
        if work:
            yield work
        return
    for name, more, limit in _daily(account, reservation):
        if more > limit:
            raise _exhausted(name, limit, 0)
    reserving = _reserving(account, reservation)
    *_, reserved = yield [*work, reserving]
    if not reserved:
        yield from _refuse(account, reservation, reserving)


def settling(
    workspace_id: UUID, reservation: Reservation | None, tokens: int, nanos: int
) -> list[Statement]:
    """Return the statement that settles `reservation` with what was used."""
    if reservation is None:
        return []
    settling = _SETTLE(
        workspace_id_=workspace_id,
        bucket_=reservation.bucket,
        day_=reservation.day,
        tokens_more_=tokens - reservation.tokens,
        nanos_more_=nanos - reservation.nanos,
    )
    return [settling]


def _reserving(account: Account, reservation: Reservation) -> Statement:
    return _RESERVE(
        workspace_id_=account.workspace_id,
        bucket_=reservation.bucket,
        day_=reservation.day,
        tokens_=reservation.tokens,
        nanos_=reservation.nanos,
        upload_ms_=reservation.upload_ms,
        live_turns_limit_=account.turns_limit,
        tokens_limit_=account.tokens_limit,
        nanos_limit_=account.nanos_limit,
        upload_ms_limit_=account.upload_ms_limit,
    )


def _refuse(account: Account, reservation: Reservation, reserving: Statement) -> Program[None]:
    """Say which limit was reached, unless live turns were counted wrongly."""
    bucket = {"workspace_id_": account.workspace_id, "bucket_": reservation.bucket}
    ((day, *used),), ((live,),) = yield [_USED(**bucket), _COUNT_LIVE(**bucket)]
    for (name, more, limit), so_far in zip(_daily(account, reservation), used, strict=True):
        of_today = so_far if day >= reservation.day else 0
        if of_today + more > limit:
            raise _exhausted(name, limit, of_today)
    # Turns that went with their sessions never said that they ended: count what there is.
    if live > account.turns_limit:  # with the one of this transaction
        raise _too_many_turns(account)
    _, reserved = yield [_CORRECT_LIVE(**bucket, live_=live - 1), reserving]
    if not reserved:
        raise _too_many_turns(account)


def _daily(account: Account, reservation: Reservation) -> tuple[tuple[str, int, int], ...]:
    return (
        ("upload_ms", reservation.upload_ms, account.upload_ms_limit),
        ("tokens", reservation.tokens, account.tokens_limit),
        ("nanos", reservation.nanos, account.nanos_limit),
    )


def _exhausted(name: str, limit: int, used: int) -> AppError:
    now = utc_now()
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    wait_seconds = (midnight - now).total_seconds()
    remaining = max(0, limit - used)
    until = "What this request may take is more than is left of it. A new day begins at 00:00 UTC."
    error: AppError
    if name == "upload_ms":
        told = ("upload_seconds", str(limit // 1000), str(remaining // 1000))
        error = UploadsExhausted(
            f"The limit is {limit // 60_000} minutes of recordings a day. {until}",
            retry_after_seconds=wait_seconds,
        )
    elif name == "tokens":
        told = ("tokens", str(limit), str(remaining))
        error = BudgetExhausted(
            f"The limit is {limit} tokens a day. {until}", retry_after_seconds=wait_seconds
        )
    else:
        told = ("usd", _dollars(limit), _dollars(remaining))
        error = BudgetExhausted(
            f"The limit is {_dollars(limit)} US dollars a day. {until}",
            retry_after_seconds=wait_seconds,
        )
    error.quota = Quota(*told, reset_at=int(midnight.timestamp()))
    return error


def _dollars(nanos: int) -> str:
    return f"{(Decimal(nanos) / NANOS).normalize():f}"


def _too_many_turns(account: Account) -> TooManyTurns:
    error = TooManyTurns(
        f"{account.turns_limit} turns of this key, or of this workspace without one, are not "
        "finished yet.",
        retry_after_seconds=1,
    )
    reset_at = int(utc_now().timestamp()) + 1
    error.quota = Quota("turns", str(account.turns_limit), "0", reset_at)
    return error
