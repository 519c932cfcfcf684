"""Limit the requests per minute of each caller, over all servers of a database.

A server leases permits from the caller's row in blocks, so that most requests need no database, and
all servers together never exceed the limit. Unused permits expire with the minute.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

import anyio
from sqlalchemy import BigInteger, Dialect, Table, bindparam, case, delete, or_
from sqlalchemy.sql import ClauseElement

from app.core.database import Database, StorageUnavailable
from app.core.database.statements import PreparedStatement, Rows, upsert
from app.core.database.transactions import TransactionScript
from app.core.limits import Quota
from app.core.security import Caller
from app.models import RequestWindow
from app.services.usage.accounts import AccountDirectory
from app.services.usage.errors import RateLimited

_windows = cast("Table", RequestWindow.__table__)
_BLOCKS = 20
"""Number of blocks per limit: a busy server asks the database at most this often per minute."""
_MAX_WINDOWS = 10_000
_PRUNE_MINUTES = 10

_Key = tuple[UUID, str]


@dataclass(slots=True)
class _Window:
    """The current minute of one caller, as this server knows it."""

    minute: int = 0
    permits: int = 0
    """Leased by this server and not used yet."""
    used: int = 0
    """Leased by all servers, when this one last read the row."""
    leasing: anyio.Lock = field(default_factory=anyio.Lock)

    def begin(self, minute: int) -> None:
        self.minute, self.permits, self.used = minute, 0, 0


class RequestLimiter:
    """Admits or refuses requests by the limit of their caller."""

    def __init__(
        self,
        database: Database,
        accounts: AccountDirectory,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._accounts = accounts
        self._clock = clock
        self._caller_windows: dict[_Key, _Window] = {}
        self._pruned_at = 0

    @property
    def window_count(self) -> int:
        """How many callers are remembered."""
        return len(self._caller_windows)

    async def admit(self, caller: Caller) -> Quota | None:
        """Count a request; return the quota that is nearest its end, `None` without a limit.

        It counts for the end user, if there is one, and for the key and those that it descends
        from. Raises `RateLimited`; then it counts for none of them.
        """
        account = self._accounts.of(caller)
        own = (account.own_bucket,) if account.own_bucket else ()
        limited = [
            (bucket.name, limit)
            for bucket in (*own, *account.buckets)
            if (limit := bucket.limits.requests_per_minute)
        ]
        if not limited:
            return None
        while True:
            windows = [
                (await self._window((caller.workspace_id, name), limit), limit)
                for name, limit in limited
            ]
            # Another task may have used a permit of the first meanwhile.
            minute = int(self._clock()) // 60
            empty = [(window, limit) for window, limit in windows if not window.permits]
            if not empty and all(window.minute >= minute for window, _ in windows):
                break
            for window, limit in empty:
                if window.used >= limit and window.minute >= minute:
                    raise self._refusal(window, limit)
        for window, _ in windows:
            window.permits -= 1
        quotas = [self._quota(window, limit) for window, limit in windows]
        return min(quotas, key=lambda quota: int(quota.remaining))

    async def _window(self, key: _Key, limit: int) -> _Window:
        """Return the current window of a bucket, with a permit if there is any left."""
        minute = int(self._clock()) // 60
        window = self._caller_windows.get(key) or self._add_window(key, minute)
        if window.minute < minute:
            window.begin(minute)
        if not window.permits and window.used < limit:
            async with window.leasing:
                if not window.permits and window.used < limit:  # another task may have leased
                    await self._lease(window, key, limit)
        return window

    def _add_window(self, key: _Key, minute: int) -> _Window:
        if len(self._caller_windows) >= _MAX_WINDOWS:
            self._caller_windows = {
                known_key: window
                for known_key, window in self._caller_windows.items()
                if window.minute >= minute
            }
        return self._caller_windows.setdefault(key, _Window())

    async def _lease(self, window: _Window, key: _Key, limit: int) -> None:
        if self._database.is_sqlite:  # only one server uses the database
            window.permits, window.used = limit, limit
            return
        block = max(1, limit // _BLOCKS)
        try:
            rows = await self._database.run(self._take, key, window.minute, block, limit)
        except StorageUnavailable:
            window.permits = block  # admit: requests that need the database fail by themselves
            return
        if not rows:
            window.used = limit
            return
        ((minute, taken),) = rows
        window.minute = max(window.minute, minute)
        window.permits = block - max(0, taken - limit)
        window.used = min(taken, limit)

    def _take(self, key: _Key, minute: int, block: int, limit: int) -> TransactionScript[Rows]:
        """Lease a block of permits; every 10 minutes delete the rows of inactive callers."""
        workspace_id, caller = key
        rows, *_ = yield [
            _TAKE_BLOCK(
                workspace_id_=workspace_id,
                caller_=caller,
                minute_=minute,
                block_=block,
                limit_=limit,
            )
        ]
        if minute - self._pruned_at >= _PRUNE_MINUTES:
            self._pruned_at = minute
            yield [_PRUNE(minute_=minute - _PRUNE_MINUTES)]
        return rows

    def _refusal(self, window: _Window, limit: int) -> RateLimited:
        error = RateLimited(
            f"The limit is {limit} requests per minute: send fewer requests, or wait.",
            retry_after_seconds=(window.minute + 1) * 60 - self._clock(),
        )
        error.quota = self._quota(window, limit)
        return error

    def _quota(self, window: _Window, limit: int) -> Quota:
        remaining = max(0, limit - window.used) + window.permits
        return Quota("requests", str(limit), str(remaining), (window.minute + 1) * 60)


def _take_block_stmt(dialect: Dialect) -> ClauseElement:
    """Lease a block of permits if any are left; return the minute and the sum of permits."""
    columns = _windows.c
    minute, block, limit = (
        bindparam(name, type_=BigInteger()) for name in ("minute_", "block_", "limit_")
    )
    is_older = columns.minute < minute
    return (
        upsert(dialect, _windows)
        .values(
            workspace_id=bindparam("workspace_id_", type_=columns.workspace_id.type),
            bucket=bindparam("caller_", type_=columns.bucket.type),
            minute=minute,
            taken=block,
        )
        .on_conflict_do_update(
            index_elements=["workspace_id", "bucket"],
            set_={
                # A newer minute was written by a server whose clock is ahead: all servers use it.
                "minute": case((is_older, minute), else_=columns.minute),
                "taken": case((is_older, block), else_=columns.taken + block),
            },
            where=or_(is_older, columns.taken < limit),
        )
        .returning(columns.minute, columns.taken)
    )


def _prune_stmt(_dialect: Dialect) -> ClauseElement:
    return delete(_windows).where(_windows.c.minute < bindparam("minute_", type_=BigInteger()))


_TAKE_BLOCK = PreparedStatement(_take_block_stmt)
_PRUNE = PreparedStatement(_prune_stmt)
