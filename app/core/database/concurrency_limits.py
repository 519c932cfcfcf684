"""Bounds work whose cost a client decides: how much runs at once, and for how long."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database.caller_locks import CallerLocks
from app.core.errors import AppError, ErrorKind

SEARCH_SECONDS = 2.0
_WAIT_SECONDS = 4.0
_STEPS_BETWEEN_CHECKS = 1000
"""Instructions of SQLite's virtual machine after which it looks at the clock."""
_CANCELED_SQLSTATE = "57014"
_INTERRUPTED_SQLITE = "SQLITE_INTERRUPT"


class SearchTooSlow(AppError):
    """The search takes too long."""

    kind = ErrorKind.INVALID
    code = "search-too-slow"


class SearchBusy(AppError):
    """Too many searches at once."""

    kind = ErrorKind.UNAVAILABLE
    code = "search-busy"


class CopyBusy(AppError):
    """Too many sessions are copied or imported at once."""

    kind = ErrorKind.UNAVAILABLE
    code = "copy-busy"


class CallerSlots:
    """At most `size` requests of a kind at once, and one of each caller."""

    def __init__(self, size: int, busy: Callable[[], AppError]) -> None:
        """`busy` creates the error of a caller that waits for too long."""
        self._slots = asyncio.Semaphore(size)
        self._callers = CallerLocks()
        self._busy = busy

    @asynccontextmanager
    async def slot(self, caller: object) -> AsyncGenerator[None]:
        """Hold a slot during the block. Raises the error of `busy` after 4 s without one."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await held.enter_async_context(self._callers.hold(caller))
                    await held.enter_async_context(self._slots)
            except TimeoutError:
                raise self._busy() from None
            yield


def search_busy() -> SearchBusy:
    """Create the error of a search that found no slot."""
    return SearchBusy("Too many searches run at once: try again.", retry_after_seconds=1)


def copy_busy() -> CopyBusy:
    """Create the error of a fork or an import that found no slot."""
    return CopyBusy(
        "Too many sessions are copied or imported at once: try again.", retry_after_seconds=1
    )


@asynccontextmanager
async def bounded_duration(db: AsyncSession, *, is_sqlite: bool) -> AsyncGenerator[None]:
    """Cancel a query of the block that runs for more than 2 s. Raises `SearchTooSlow`."""
    connection = await db.connection()
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if is_sqlite:
        end = time.monotonic() + SEARCH_SECONDS
        await driver.set_progress_handler(lambda: time.monotonic() > end, _STEPS_BETWEEN_CHECKS)
    else:
        await db.execute(text(f"SET LOCAL statement_timeout = {round(SEARCH_SECONDS * 1000)}"))
    try:
        yield
    except DBAPIError as error:
        if not _is_canceled(error):
            raise
        raise SearchTooSlow(
            f"The search took more than {SEARCH_SECONDS:.0f} seconds: use rarer words, or name "
            "`agent_id` or `user_id`."
        ) from error
    finally:
        if is_sqlite:
            await driver.set_progress_handler(None, 0)


def _is_canceled(error: DBAPIError) -> bool:
    driver_error: Any = error.orig
    return (
        getattr(driver_error, "sqlstate", None) == _CANCELED_SQLSTATE
        or getattr(driver_error, "sqlite_errorname", None) == _INTERRUPTED_SQLITE
    )
