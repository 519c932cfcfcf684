"""Requests of a minute: one limit for all servers of a database, at the cost of a dictionary.

A server takes permits from the caller's row a block at a time, so that together they never give
out more than the limit; what one took and did not use before the minute ended is lost.
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
from app.core.direct import Direct, Program, Rows, upsert
from app.core.limits import Limits, Quota
from app.core.security import Caller
from app.models import RequestWindow
from app.services.usage.errors import RateLimited

_windows = cast("Table", RequestWindow.__table__)
_BLOCKS = 20
"""Into so many blocks a limit is divided: a busy server asks the database so often in a minute."""
_REMEMBERED_CALLERS = 10_000
_PRUNE_MINUTES = 10

_Key = tuple[UUID, str]


@dataclass(slots=True)
class _Window:
    """What this server knows of a caller's minute."""

    minute: int = 0
    permits: int = 0
    """Taken and not used."""
    taken: int = 0
    """By all servers, when this one last asked."""
    leasing: anyio.Lock = field(default_factory=anyio.Lock)

    def begin(self, minute: int) -> None:
        self.minute, self.permits, self.taken = minute, 0, 0


class RequestLimiter:
    """Counts the requests of each caller."""

    def __init__(
        self, database: Database, defaults: Limits, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._default = defaults.requests_per_minute or 0
        self._clock = clock
        self._known: dict[_Key, _Window] = {}
        self._pruned_at = 0

    async def admit(self, caller: Caller) -> Quota | None:
        """Count a request; return how the caller stands, `None` where nothing is limited.

        Raises `RateLimited`.
        """
        own = caller.limits.requests_per_minute
        limit = self._default if own is None else own
        if not limit:
            return None
        key = (caller.workspace_id, _bucket(caller))
        minute = int(self._clock()) // 60
        window = self._known.get(key) or self._remember(key, minute)
        if window.minute < minute:
            window.begin(minute)
        if not window.permits and window.taken < limit:
            async with window.leasing:
                if not window.permits and window.taken < limit:  # nobody else just did
                    await self._lease(window, key, limit)
        if not window.permits:
            raise self._refusal(window, limit)
        window.permits -= 1
        return self._quota(window, limit)

    def _remember(self, key: _Key, minute: int) -> _Window:
        if len(self._known) >= _REMEMBERED_CALLERS:
            self._known = {
                known: window for known, window in self._known.items() if window.minute >= minute
            }
        return self._known.setdefault(key, _Window())

    async def _lease(self, window: _Window, key: _Key, limit: int) -> None:
        if self._database.is_sqlite:  # which has no other server
            window.permits, window.taken = limit, limit
            return
        block = max(1, limit // _BLOCKS)
        try:
            rows = await self._database.run(self._take, key, window.minute, block, limit)
        except StorageUnavailable:
            window.permits = block  # whatever needs the database says so itself
            return
        if not rows:
            window.taken = limit
            return
        ((minute, taken),) = rows
        window.minute = max(window.minute, minute)
        window.permits = block - max(0, taken - limit)
        window.taken = min(taken, limit)

    def _take(self, key: _Key, minute: int, block: int, limit: int) -> Program[Rows]:
        """Take a block of permits, and now and then forget who has not asked for a while."""
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
            yield [_FORGET(minute_=minute - _PRUNE_MINUTES)]
        return rows

    def _refusal(self, window: _Window, limit: int) -> RateLimited:
        error = RateLimited(
            f"The limit is {limit} requests a minute.",
            retry_after_seconds=(window.minute + 1) * 60 - self._clock(),
        )
        error.quota = self._quota(window, limit)
        return error

    def _quota(self, window: _Window, limit: int) -> Quota:
        remaining = max(0, limit - window.taken) + window.permits
        return Quota("requests", str(limit), str(remaining), (window.minute + 1) * 60)


def _bucket(caller: Caller) -> str:
    """Return whose requests are counted together: a key's, an end user's, or those of neither."""
    if caller.key_id:
        return f"key:{caller.key_id}"
    return f"user:{caller.user_id}" if caller.user_id else ""


def _take_block(dialect: Dialect) -> ClauseElement:
    """Take a block of permits where there are some; return of which minute, and all taken."""
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
                # A newer minute is of a server whose clock is ahead: it counts for all.
                "minute": case((is_older, minute), else_=columns.minute),
                "taken": case((is_older, block), else_=columns.taken + block),
            },
            where=or_(is_older, columns.taken < limit),
        )
        .returning(columns.minute, columns.taken)
    )


def _forget(_dialect: Dialect) -> ClauseElement:
    return delete(_windows).where(_windows.c.minute < bindparam("minute_", type_=BigInteger()))


_TAKE_BLOCK = Direct(_take_block)
_FORGET = Direct(_forget)
