"""Daily budgets and the number of live turns: reserved at acceptance, settled with the turn.

Each bucket has one row. Each of a turn's two transactions changes the rows of its buckets with its
last statements, in the order of their names, to hold the row locks as briefly as possible.
"""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Date,
    Dialect,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Statement, upsert
from app.core.database.transactions import TransactionScript
from app.core.errors import AppError
from app.core.limits import Quota
from app.models import UNSETTLED, Budget, Turn, TurnStatus, utc_now
from app.services.usage.accounts import (
    Account,
    Bucket,
    BucketKind,
    Reservation,
    bucket_kind,
)
from app.services.usage.days import end_of
from app.services.usage.errors import BudgetExhausted, TooManyTurns, UploadsExhausted
from app.services.usage.pricing import NANOS

_budgets = cast("Table", Budget.__table__)
_turns = cast("Table", Turn.__table__)
_RESERVATION_COLUMNS = (
    _turns.c.reserved_buckets, _turns.c.key_id, _turns.c.reserved_day, _turns.c.reserved_tokens,
    _turns.c.reserved_nanos,
)  # fmt: skip
_AMOUNTS = ("upload_ms", "tokens", "nanos")
_day = bindparam("day_", type_=Date())


def _amount(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=BigInteger())


def _reserve_stmt(dialect: Dialect) -> ClauseElement:
    """Add a reservation to the account's row if no limit is exceeded; return a row if added.

    Amounts of an older day are reset. A newer day was written by a server whose clock is ahead.
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


def _charge_upload_stmt(dialect: Dialect) -> ClauseElement:
    """Add to the account's row, whatever its limits."""
    columns = _budgets.c
    statement = upsert(dialect, _budgets).values(
        workspace_id=bindparam("workspace_id_", type_=columns.workspace_id.type),
        bucket=bindparam("bucket_", type_=columns.bucket.type),
        day=_day,
        live_turns=0,
        upload_ms=_amount("upload_ms_"),
        tokens=0,
        nanos=0,
    )
    new = statement.excluded
    is_today = columns.day >= new.day
    return statement.on_conflict_do_update(
        index_elements=["workspace_id", "bucket"],
        set_={
            "day": case((is_today, columns.day), else_=new.day),
            **{name: case((is_today, columns[name]), else_=0) + new[name] for name in _AMOUNTS},
        },
    )


def _settle_stmt(_dialect: Dialect) -> Update:
    """Replace the reserved amounts by the used amounts and decrement the live turns."""
    columns = _budgets.c
    is_same_day = columns.day == _day

    def changed(column: ColumnElement[int]) -> ColumnElement[int]:
        return column + case((is_same_day, _amount(f"{column.key}_more_")), else_=0)

    return (
        update(_budgets)
        .where(is_account())
        .values(
            tokens=changed(columns.tokens),
            nanos=changed(columns.nanos),
            live_turns=case((columns.live_turns > 0, columns.live_turns - 1), else_=0),
        )
    )


def is_account() -> ColumnElement[bool]:
    """Return the condition for the row of a bucket."""
    columns = _budgets.c
    return and_(
        columns.workspace_id == bindparam("workspace_id_", type_=columns.workspace_id.type),
        columns.bucket == bindparam("bucket_", type_=columns.bucket.type),
    )


def _used_amounts_stmt(_dialect: Dialect) -> ClauseElement:
    """Select the used amounts, in the order of `_daily`."""
    columns = _budgets.c
    return select(columns.day, columns.upload_ms, columns.tokens, columns.nanos).where(is_account())


def _unsettled_reservations_stmt(_dialect: Dialect) -> ClauseElement:
    """Select the buckets and amounts that unsettled turns of a workspace have reserved."""
    workspace_id = bindparam("workspace_id_", type_=_turns.c.workspace_id.type)
    return unsettled_reservations_query(workspace_id)


def unsettled_reservations_query(
    workspace_id: UUID | ColumnElement[UUID],
) -> Select[list[str] | None, str | None, date | None, int | None, int | None]:
    """Select what unsettled turns of a workspace have reserved: `_RESERVATION_COLUMNS`."""
    query: Any = select(*_RESERVATION_COLUMNS).where(
        _turns.c.workspace_id == workspace_id,
        _turns.c.reserved_day.is_not(None),
        text(UNSETTLED),
    )
    return query


def _correct_live_stmt(_dialect: Dialect) -> Update:
    return update(_budgets).where(is_account()).values(live_turns=_amount("live_"))


_RESERVE = PreparedStatement(_reserve_stmt)
_CHARGE_UPLOAD = PreparedStatement(_charge_upload_stmt)
_SETTLE = PreparedStatement(_settle_stmt)
USED = PreparedStatement(_used_amounts_stmt)
UNSETTLED_RESERVATIONS = PreparedStatement(_unsettled_reservations_stmt)
_CORRECT_LIVE = PreparedStatement(_correct_live_stmt)


def reserve(
    account: Account, reservation: Reservation | None, work: Sequence[Statement] = ()
) -> TransactionScript[None]:
    """Run the statements `work` and store `reservation`, in one batch.

    Raises `TooManyTurns`, `UploadsExhausted` or `BudgetExhausted`; then the transaction must be
    rolled back.
    """
    if reservation is None:
        if work:
            yield work
        return
    yield from reserve_for(account.workspace_id, reservation, work)


def reserve_for(
    workspace_id: UUID, reservation: Reservation, work: Sequence[Statement] = ()
) -> TransactionScript[None]:
    """Do the same for a reservation that is known; the turn becomes one more live turn."""
    for bucket in reservation.buckets:
        for name, more, limit in _daily(bucket, reservation):
            if more > limit:
                raise exhausted(bucket, name, limit, 0)
    reserving = [
        _reservation_stmt(workspace_id, bucket, reservation) for bucket in reservation.buckets
    ]
    answers = yield [*work, *reserving]
    reserved = answers[len(work) :]
    for bucket, statement, rows in zip(reservation.buckets, reserving, reserved, strict=True):
        if not rows:
            yield from _refuse(workspace_id, bucket, reservation, statement)


def require_left(account: Account) -> TransactionScript[None]:
    """Check that something is left of each of the day's budgets; changes nothing.

    Raises `UploadsExhausted` or `BudgetExhausted`.
    """
    buckets = account.budgets(account.user_id)
    if not buckets:
        return
    nothing = Reservation(buckets, utc_now().date(), tokens=0, nanos=0)
    answers = yield [
        USED(workspace_id_=account.workspace_id, bucket_=bucket.name) for bucket in buckets
    ]
    for bucket, rows in zip(buckets, answers, strict=True):
        for day, *used in rows:
            for (name, _, limit), so_far in zip(_daily(bucket, nothing), used, strict=True):
                if day >= nothing.day and so_far >= limit:
                    raise exhausted(bucket, name, limit, so_far)


def charge_upload(account: Account, seconds: float) -> TransactionScript[None]:
    """Count a recording that was decoded in vain against the day's minutes of each budget."""
    buckets = account.budgets(account.user_id)
    if buckets:
        yield [
            _CHARGE_UPLOAD(
                workspace_id_=account.workspace_id,
                bucket_=bucket.name,
                day_=utc_now().date(),
                upload_ms_=round(seconds * 1000),
            )
            for bucket in buckets
        ]


def settle_stmts(
    workspace_id: UUID, reservation: Reservation | None, tokens: int, nanos: int
) -> list[Statement]:
    """Return the statement that replaces `reservation` by the used `tokens` and `nanos`."""
    if reservation is None:
        return []
    return [
        _SETTLE(
            workspace_id_=workspace_id,
            bucket_=bucket.name,
            day_=reservation.day,
            tokens_more_=tokens - reservation.tokens,
            nanos_more_=nanos - reservation.nanos,
        )
        for bucket in reservation.buckets
    ]


async def release_waiting(db: AsyncSession, workspace_id: UUID, session_id: UUID) -> None:
    """Release what is reserved for the waiting turns of a session that is about to be deleted.

    A turn that runs settles its reservation itself when it ends.
    """
    columns = _turns.c
    waiting = await db.execute(
        select(*_RESERVATION_COLUMNS).where(
            columns.workspace_id == workspace_id,
            columns.session_id == session_id,
            columns.reserved_day.is_not(None),
            columns.status.in_((TurnStatus.QUEUED, TurnStatus.REQUIRES_ACTION)),
        )
    )
    rows = [
        (bucket, day, tokens or 0, nanos or 0)
        for names, key_id, day, tokens, nanos in waiting
        for bucket in reserved_names(names, key_id)
    ]
    statement = _settle_stmt(db.get_bind().dialect)
    connection = await db.connection()
    for bucket, day, tokens, nanos in sorted(rows):  # locked in the order of all transactions
        values = {
            "workspace_id_": workspace_id,
            "bucket_": bucket,
            "day_": day,
            "tokens_more_": -tokens,
            "nanos_more_": -nanos,
        }
        await connection.execute(statement, values)


def _reservation_stmt(workspace_id: UUID, bucket: Bucket, reservation: Reservation) -> Statement:
    return _RESERVE(
        workspace_id_=workspace_id,
        bucket_=bucket.name,
        day_=reservation.day,
        tokens_=reservation.tokens,
        nanos_=reservation.nanos,
        upload_ms_=reservation.upload_ms,
        live_turns_limit_=bucket.turns_limit,
        tokens_limit_=bucket.tokens_limit,
        nanos_limit_=bucket.nanos_limit,
        upload_ms_limit_=bucket.upload_ms_limit,
    )


def _refuse(
    workspace_id: UUID, bucket: Bucket, reservation: Reservation, reserving: Statement
) -> TransactionScript[None]:
    """Raise the error of the limit that was reached; correct a wrong count of live turns."""
    row = {"workspace_id_": workspace_id, "bucket_": bucket.name}
    ((day, *used),), unsettled = yield [
        USED(**row),
        UNSETTLED_RESERVATIONS(workspace_id_=workspace_id),
    ]
    for (name, more, limit), so_far in zip(_daily(bucket, reservation), used, strict=True):
        of_today = so_far if day >= reservation.day else 0
        if of_today + more > limit:
            raise exhausted(bucket, name, limit, of_today)
    # Turns of deleted sessions were never settled: count the turns that exist.
    live = sum(bucket.name in reserved_names(names, key_id) for names, key_id, *_ in unsettled)
    if live > bucket.turns_limit:  # includes the turn of this transaction
        raise _too_many_turns(bucket)
    _, reserved = yield [_CORRECT_LIVE(**row, live_=max(0, live - 1)), reserving]
    if not reserved:
        raise _too_many_turns(bucket)


def reserved_names(names: Sequence[str] | None, key_id: str | None) -> Sequence[str]:
    """Return the buckets of a turn's reservation, as its row has them."""
    return [key_id or ""] if names is None else names


def _daily(bucket: Bucket, reservation: Reservation) -> tuple[tuple[str, int, int], ...]:
    return (
        ("upload_ms", reservation.upload_ms, bucket.upload_ms_limit),
        ("tokens", reservation.tokens, bucket.tokens_limit),
        ("nanos", reservation.nanos, bucket.nanos_limit),
    )


def exhausted(bucket: Bucket, name: str, limit: int, used: int) -> AppError:
    """Return the error of a limit that is reached: `upload_ms`, `tokens` or `nanos`."""
    now = utc_now()
    midnight = end_of(now.date())
    wait_seconds = (midnight - now).total_seconds()
    remaining = max(0, limit - used)
    whose = _OWNERS[bucket_kind(bucket.name)]
    until = "This request may need more than is left. The budget is renewed at 00:00 UTC."
    error: AppError
    if name == "upload_ms":
        quota = ("upload_seconds", str(limit // 1000), str(remaining // 1000))
        error = UploadsExhausted(
            f"The limit {whose} is {limit / 60_000:g} minutes of recordings per day. {until}",
            retry_after_seconds=wait_seconds,
        )
    elif name == "tokens":
        quota = ("tokens", str(limit), str(remaining))
        error = BudgetExhausted(
            f"The limit {whose} is {limit} tokens per day. {until}",
            retry_after_seconds=wait_seconds,
        )
    else:
        quota = ("usd", _dollars(limit), _dollars(remaining))
        error = BudgetExhausted(
            f"The limit {whose} is {_dollars(limit)} US dollars per day. {until}",
            retry_after_seconds=wait_seconds,
        )
    error.quota = Quota(*quota, reset_at=int(midnight.timestamp()))
    return error


def _dollars(nanos: int) -> str:
    return f"{(Decimal(nanos) / NANOS).normalize():f}"


_OWNERS = {
    BucketKind.KEY: "of this key",
    BucketKind.USER: "of this end user",
    BucketKind.SESSION: "of this end user",
    BucketKind.USERS: "of requests without a key",
    BucketKind.ADMIN: "of requests without a key",
    BucketKind.WORKSPACE: "of this workspace",
}
"""Whose budget it is, in words."""


def _too_many_turns(bucket: Bucket) -> TooManyTurns:
    error = TooManyTurns(
        f"The limit {_OWNERS[bucket_kind(bucket.name)]} is {bucket.turns_limit} turns at once: "
        "wait until one of them is finished.",
        retry_after_seconds=1,
    )
    reset_at = int(utc_now().timestamp()) + 1
    error.quota = Quota("turns", str(bucket.turns_limit), "0", reset_at)
    return error
