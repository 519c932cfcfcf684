"""Look up what became of a COMMIT whose answer was lost, once the database is back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from app.core.database.commit_future import CommitFuture
from app.core.database.errors import CommitOutcomeUnknown, StorageUnavailable
from app.core.database.transactions import TransactionScript

logger = logging.getLogger(__name__)

RunScript = Callable[[Callable[[], TransactionScript[Any]], str], Awaitable[Any]]

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '1s'"
"""The lost transaction may still hold its locks, and be committed or rolled back later."""


class CommitConfirmations:
    """Resolves the futures of transactions whose commit outcome is unknown."""

    def __init__(self, run_script: RunScript, seconds: float) -> None:
        """Look up for `seconds` at most.

        `run_script` runs a script in a transaction that begins with the given SQL.
        """
        self._run_script = run_script
        self._seconds = seconds
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, future: CommitFuture, begin: str, result: object) -> None:
        """Resolve `future`, whose script returned `result`, in a task of its own."""
        if future.confirm is None:
            future.set_exception(CommitOutcomeUnknown(result=result))
            return
        script = future.confirm
        work = self._resolve(future, lambda: script(result), f"{begin}; {_LOCK_TIMEOUT}")
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait until every future is resolved."""
        await asyncio.gather(*self._tasks)

    async def _resolve(
        self, future: CommitFuture, make_script: Callable[[], TransactionScript[Any]], begin: str
    ) -> None:
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + self._seconds
        pause_seconds = _FIRST_PAUSE_SECONDS
        while clock() < give_up_at:
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
            try:
                found = await self._run_script(make_script, begin)
            except Exception as error:  # noqa: BLE001  # unreachable, or a lock is still held
                logger.debug("a lost commit cannot be looked up yet: %r", error)
                continue
            if found is None:
                future.set_exception(StorageUnavailable())
            else:
                future.set_result(found)
            return
        future.set_exception(CommitOutcomeUnknown())
