"""Whether this server should be sent requests: looked up once a second, however many ask."""

import time

import anyio

from app.core.database.revision import RevisionCheck
from app.core.errors import AppError
from app.services.turns import TurnEngine
from app.services.turns.errors import ServerBusy, ServerDraining

_REMEMBERED_SECONDS = 1.0


class Readiness:
    """Knows of the database and the server; one instance serves the process."""

    def __init__(self, turns: TurnEngine, schema_gate: RevisionCheck) -> None:
        self._turns = turns
        self._schema_gate = schema_gate
        self._checked_at = float("-inf")
        self._problem: AppError | None = None
        self._checking = anyio.Lock()

    async def require(self) -> None:
        """Return at once where the server is ready.

        Raises `ServerDraining`; `ServerBusy` while as many turns are registered as can be, so
        that each message would be refused; `DatabaseNotMigrated` or `StorageUnavailable`.
        """
        if self._turns.is_draining:
            raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
        if self._turns.is_full:
            raise ServerBusy(
                "This server is full: it holds as many turns as it can.", retry_after_seconds=1
            )
        if self._is_old:
            async with self._checking:  # those who ask meanwhile get the same answer
                if self._is_old:
                    await self._check()
        if self._problem:
            raise self._problem.with_traceback(None)

    @property
    def _is_old(self) -> bool:
        return time.monotonic() - self._checked_at > _REMEMBERED_SECONDS

    async def _check(self) -> None:
        try:
            await self._schema_gate.check_now()
        except AppError as problem:
            self._problem = problem
        else:
            self._problem = None
        self._checked_at = time.monotonic()
