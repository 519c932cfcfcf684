"""A future for a transaction's result, with a callback that runs even if the waiter is gone."""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from app.core.database.transactions import TransactionScript


@dataclass(slots=True)
class CommitFuture:
    """The result of a transaction that another task commits.

    Create it in the task that awaits it: `on_commit` runs in that task's context, also if the
    task was cancelled meanwhile. So the callback runs exactly if the transaction was committed,
    and no shield is needed, which would cost a thirtieth of a text turn.
    """

    on_commit: Callable[[Any], Any] | None = None
    """Gets the result, in the moment that it is there; what it returns is what is awaited."""
    confirm: Callable[[Any], TransactionScript[Any]] | None = None
    """After a COMMIT whose answer was lost: returns the result to go on with, or `None` if nothing
    was stored. It must wait for a lock of the lost transaction first, or it may look too early."""
    _future: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _context: Context = field(default_factory=copy_context)

    async def result(self) -> Any:  # noqa: ANN401  # the transaction's result type
        """Wait for the result. Raises what the transaction or `on_commit` raised."""
        return await self._future

    def set_result(self, result: Any) -> None:  # noqa: ANN401  # as above
        """Call `on_commit` and complete the future; an error of the callback fails the future."""
        if self.on_commit:
            try:
                result = self._context.run(self.on_commit, result)
            except Exception as error:  # noqa: BLE001  # raised to the waiter
                self.set_exception(error)
                return
        if not self._future.done():
            self._future.set_result(result)

    def set_exception(self, error: BaseException) -> None:
        """Fail the future with the error of the transaction."""
        if not self._future.done():
            self._future.set_exception(error)
