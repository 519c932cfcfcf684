"""The result of work that another task does, for one who waits for it and may leave."""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Promise:
    """Make it where it is awaited: `then` runs in that context, also when nobody waits any more.

    So what follows from the work is done or not done together with it, and no shield is needed,
    which would be a thirtieth of a text turn.
    """

    then: Callable[[Any], Any] | None = None
    """Gets the result, in the moment that it is there; what it returns is what is awaited."""
    _done: asyncio.Future[Any] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    _context: Context = field(default_factory=copy_context)

    async def result(self) -> Any:  # noqa: ANN401  # whatever the work returns
        """Wait, and raise what the work or `then` raised."""
        return await self._done

    def keep(self, result: Any) -> None:  # noqa: ANN401  # as above
        """Say that the work is done."""
        if self.then:
            try:
                result = self._context.run(self.then, result)
            except Exception as error:  # noqa: BLE001  # it is the waiter's
                self.break_with(error)
                return
        if not self._done.done():
            self._done.set_result(result)

    def break_with(self, error: BaseException) -> None:
        """Say that the work failed."""
        if not self._done.done():
            self._done.set_exception(error)
