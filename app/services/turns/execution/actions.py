"""What lets a stored turn run again here: actions on tool calls that wait, and a retry."""

import logging
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID

import anyio
from sqlalchemy import select

from app.core.database import Database, StorageUnavailable
from app.core.database.retries import retry_while_unavailable
from app.core.database.transactions import TransactionScript
from app.core.errors import AppError
from app.models import TurnStatus
from app.services.turns.errors import ServerDraining, TurnNotRetryable
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.remote_turns import RemoteTurnWatcher
from app.services.turns.execution.turn_tasks import TurnTasks
from app.services.turns.records import TurnRecord
from app.services.turns.storage import resolution
from app.services.turns.storage.repetition import run_again_or_find
from app.services.turns.storage.resolution import Resolution, Resolved
from app.services.turns.storage.tables import turns
from app.services.usage import Account

logger = logging.getLogger(__name__)

_EXPIRY = Resolution("expire", "server")
_RETRY_SECONDS = 60
"""How long the database may be away while somebody waits for a turn."""


class TurnActions:
    """Takes actions for one engine."""

    def __init__(
        self,
        database: Database,
        owner_id: UUID,
        tasks: TurnTasks,
        resume: Callable[[TurnRecord], None],
        watcher: RemoteTurnWatcher,
    ) -> None:
        """`resume` runs a turn that goes on as this server's."""
        self._database = database
        self._owner_id = owner_id
        self._tasks = tasks
        self._resume = resume
        self._watcher = watcher

    async def resolve(self, workspace_id: UUID, call_id: UUID, action: Resolution) -> Resolved:
        """Take one action; the turn goes on here if it was the last one: see `resolution.resolve`.

        Raises `ServerDraining`, too.
        """
        if self._tasks.draining.is_set():
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        with self._tasks.accepting():
            return await self._take(workspace_id, call_id, action)

    async def _take(self, workspace_id: UUID, call_id: UUID, action: Resolution) -> Resolved:
        # If the client disconnects here, the action is taken and the turn goes on, or neither.
        resolved = None
        with anyio.CancelScope(shield=True):
            resolved = await self._database.run_repeatable(
                resolution.resolve, workspace_id, call_id, action, self._owner_id
            )
            if resolved.record:
                self._resume(resolved.record)
        if resolved is None:
            raise RuntimeError("a shielded scope was left early")
        return resolved

    async def retry(self, record: TurnRecord, account: Account) -> None:
        """Run a failed turn again in place, as its next attempt, charged to `account`.

        A turn that runs or waits already is left as it is. Raises `TurnNotRetryable`,
        `ServerDraining`, `BudgetExhausted` and `TooManyTurns`.
        """
        if self._tasks.draining.is_set():
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        if not record.keeps_content:
            raise TurnNotRetryable("Nothing of this turn is stored: send the request again.")

        def script() -> TransactionScript[tuple[TurnRecord, bool]]:
            return run_again_or_find(
                record.workspace_id, record.id, account, self._owner_id, whatever_error=True
            )

        is_unchanged = True
        with self._tasks.accepting(), anyio.CancelScope(shield=True):
            record, is_unchanged = await self._database.run(script)
            if not is_unchanged and record.status is TurnStatus.IN_PROGRESS:
                self._resume(record)
        if not is_unchanged:
            return
        if record.status is TurnStatus.FAILED:
            raise TurnNotRetryable("Its tools have done something, and might do it twice.")
        if record.status in {TurnStatus.COMPLETED, TurnStatus.CANCELLED}:
            raise TurnNotRetryable("Only a turn that has failed can be run again.")

    async def wait_until_taken(self, live: LiveTurn) -> None:
        """Wait until a turn that waits for actions goes on or ends, on any server, or is deleted.

        Returns early where this server shuts down, or the database is away for long.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_at_shutdown, group.cancel_scope)
            with self._watcher.watch(live), suppress(StorageUnavailable):
                while True:
                    changed = live.log.changed
                    if await retry_while_unavailable(lambda: self._goes_on(live), _RETRY_SECONDS):
                        break
                    await changed.wait()
            group.cancel_scope.cancel()

    async def _cancel_at_shutdown(self, scope: anyio.CancelScope) -> None:
        await self._tasks.draining.wait()
        scope.cancel()

    async def _goes_on(self, live: LiveTurn) -> bool:
        record = live.record
        query = select(turns.c.status, turns.c.attempt).where(
            turns.c.workspace_id == record.workspace_id, turns.c.id == record.id
        )
        async with self._database.reading() as db:
            row = (await db.execute(query)).one_or_none()
        # A higher attempt has gone on already, even where it waits again.
        return row is None or tuple(row) != (record.status, record.attempt)

    async def expire_due(self) -> None:
        """Take the actions whose time is over: the model is told, and the turn goes on."""
        if self._tasks.draining.is_set():
            return
        for workspace_id, call_id in await self._database.run(resolution.expired_calls):
            try:
                await self.resolve(workspace_id, call_id, _EXPIRY)
            except AppError as error:  # somebody was faster, or a budget is exhausted
                logger.debug("tool call %s was not expired: %s", call_id, error)
