"""How budgets stand, for `GET /usage/budgets`: limit, used, reserved and left of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.limits import Limits
from app.core.security import Caller
from app.models import ApiKey, Budget, utc_now
from app.services.usage.accounts import (
    SESSION_PREFIX,
    USER_PREFIX,
    WORKSPACE_BUCKET,
    AccountDirectory,
    Bucket,
    BucketKind,
    bucket_kind,
)
from app.services.usage.budgets import reserved_names, unsettled_reservations_query
from app.services.usage.days import end_of
from app.services.usage.pricing import NANOS
from app.services.usage.storage import MEGABYTE, StorageMeter

BUCKETS_LIMIT = 1000
_MS_OF_MINUTE = 60_000
_NOTHING = (0, 0)


@dataclass(frozen=True, slots=True)
class Standing:
    """How one budget stands with one resource; `limit` is `None` without a limit."""

    bucket: str
    kind: str
    """`key`, `user`, `session`, `users`, `admin` or `workspace`."""
    key_id: str | None
    user_id: str | None
    session_id: UUID | None
    resource: str
    limit: float | None
    used: float
    reserved: float
    remaining: float | None
    reset_at: datetime | None


async def standings(  # noqa: PLR0913  # what is shown, and filters
    db: AsyncSession,
    caller: Caller,
    accounts: AccountDirectory,
    storage: StorageMeter,
    *,
    user_id: str | None = None,
    key_id: str | None = None,
) -> list[Standing]:
    """Return the standings of the buckets that the caller may see, those who used most first.

    An end user sees their own; a key and the admin see at most 1,000 of the workspace, their own
    among them.
    """
    today = utc_now().date()
    account = accounts.of(caller)
    own = [account.own_bucket] if account.own_bucket else list(account.buckets)
    condition = Budget.workspace_id == caller.workspace_id
    if account.own_bucket:
        condition = and_(condition, Budget.bucket == account.own_bucket.name)
    named = {
        *([USER_PREFIX + user_id] if user_id is not None else []),
        *([key_id] if key_id is not None else []),
    }
    if named:
        condition = and_(condition, Budget.bucket.in_(named))
        own = [bucket for bucket in own if bucket.name in named]
    current = or_(Budget.day >= today, Budget.live_turns > 0)
    query = select(Budget).where(condition, current).order_by(Budget.nanos.desc(), Budget.bucket)
    rows = {row.bucket: row for row in await db.scalars(query.limit(BUCKETS_LIMIT))}
    limits = await _limits(db, caller, accounts, rows.keys() - {bucket.name for bucket in own})
    buckets = {
        **{bucket.name: bucket for bucket in own},
        **{name: Bucket(name, each) for name, each in limits.items()},
    }
    stored = [] if account.own_bucket or named else [await _stored(db, caller, storage)]
    reserved, live = await _reserved(db, caller.workspace_id, today)
    return stored + [
        standing
        for name in dict.fromkeys((*rows, *buckets))
        for standing in _of_bucket(
            buckets[name], rows.get(name), reserved.get(name, _NOTHING), live.get(name, 0), today
        )
    ]


async def _stored(db: AsyncSession, caller: Caller, storage: StorageMeter) -> Standing:
    used = await storage.used_bytes(caller.workspace_id, db) / MEGABYTE
    limit = storage.limit_bytes / MEGABYTE or None
    return Standing(
        WORKSPACE_BUCKET,
        *_owner(WORKSPACE_BUCKET),
        resource="stored_mb",
        limit=limit,
        used=used,
        reserved=0,
        remaining=max(0, limit - used) if limit else None,
        reset_at=None,
    )


async def _limits(
    db: AsyncSession, caller: Caller, accounts: AccountDirectory, names: set[str]
) -> dict[str, Limits]:
    """Return the limits of buckets that are not the caller's own."""
    keys = await db.scalars(
        select(ApiKey).where(ApiKey.workspace_id == caller.workspace_id, ApiKey.id.in_(names))
    )
    defaults = accounts.defaults
    found = {key.id: Limits.of_row(key).with_defaults(defaults.own) for key in keys}
    user = accounts.of(caller).user_limits or defaults.user
    for name in names - found.keys():
        match bucket_kind(name):
            case BucketKind.USER | BucketKind.SESSION:
                found[name] = user
            case BucketKind.WORKSPACE:
                found[name] = accounts.workspace_limits
            case _:
                found[name] = defaults.own
    return found


async def _reserved(
    db: AsyncSession, workspace_id: UUID, today: date
) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Return what unfinished turns have reserved, tokens and nano-dollars, and their number."""
    rows = await db.execute(unsettled_reservations_query(workspace_id))
    reserved: dict[str, tuple[int, int]] = {}
    live: dict[str, int] = {}
    for names, key_id, day, tokens, nanos in rows:
        for name in reserved_names(names, key_id):
            live[name] = live.get(name, 0) + 1
            if day == today:
                before = reserved.get(name, _NOTHING)
                reserved[name] = before[0] + (tokens or 0), before[1] + (nanos or 0)
    return reserved, live


def _of_bucket(
    bucket: Bucket, row: Budget | None, reserved: tuple[int, int], live: int, today: date
) -> Sequence[Standing]:
    is_today = row is not None and row.day >= today
    tokens, nanos, upload_ms = (
        (row.tokens, row.nanos, row.upload_ms) if row and is_today else (0, 0, 0)
    )
    midnight = end_of(today)
    limits = bucket.limits
    lines: tuple[tuple[str, float | None, float, float, datetime | None], ...] = (
        ("turns", limits.concurrent_turns, live, 0, None),
        ("upload_minutes", limits.upload_minutes_per_day, upload_ms / _MS_OF_MINUTE, 0, midnight),
        ("tokens", limits.tokens_per_day, tokens, reserved[0], midnight),
        (
            "usd",
            float(limits.usd_per_day) if limits.usd_per_day else None,
            nanos / NANOS,
            reserved[1] / NANOS,
            midnight,
        ),
    )
    return [
        Standing(
            bucket.name,
            *_owner(bucket.name),
            resource=resource,
            limit=limit or None,
            used=max(0, total - held),
            reserved=held,
            remaining=max(0, limit - total) if limit else None,
            reset_at=reset_at,
        )
        for resource, limit, total, held, reset_at in lines
    ]


def _owner(name: str) -> tuple[str, str | None, str | None, UUID | None]:
    """Return the kind of a bucket, and whose it is: a key's id, a user's or a session's."""
    kind = bucket_kind(name)
    key_id = name if kind is BucketKind.KEY else None
    user_id = name.removeprefix(USER_PREFIX) if kind is BucketKind.USER else None
    is_session = kind is BucketKind.SESSION
    session_id = UUID(name.removeprefix(SESSION_PREFIX)) if is_session else None
    return kind.value, key_id, user_id, session_id
