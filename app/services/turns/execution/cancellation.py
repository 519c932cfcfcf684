"""Cancels turns, on whichever server they run, and truncates spoken answers to what was played."""

import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

import anyio

from app.core.database import Database, StorageUnavailable
from app.core.security import Caller
from app.models import Modality, TurnStatus
from app.services import crud
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.remote_outcomes import RemoteOutcomes
from app.services.turns.records import Outcome
from app.services.turns.storage import acceptance, audio_store, unstored

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_WITHOUT_TASK = frozenset((TurnStatus.QUEUED, TurnStatus.REQUIRES_ACTION))
"""A turn that waits for another turn, or for a client's action: no server runs it."""


class TurnCanceller:
    """Cancels turns for one engine."""

    def __init__(
        self,
        database: Database,
        remote_outcomes: RemoteOutcomes,
        registered: Callable[[UUID], LiveTurn | None],
        find: Callable[[Caller, UUID], Awaitable[LiveTurn]],
        settle: Callable[[LiveTurn, Outcome], Awaitable[None]],
    ) -> None:
        """`find` and `settle` are the engine's; `registered` turns run or wait on this server."""
        self._database = database
        self._remote_outcomes = remote_outcomes
        self._registered = registered
        self._find = find
        self._settle = settle

    async def cancel(self, caller: Caller, turn_id: UUID, played_ms: int | None) -> None:
        """Cancel a turn and wait until it is settled: see `TurnEngine.cancel`."""
        try:
            live = await self._find(caller, turn_id)
        except crud.TurnNotFound:
            if not caller.sees_all_sessions or not await self._cancel_unstored(caller, turn_id):
                raise
            return
        if played_ms is not None:
            live.played_ms = played_ms
        if live.record.status in _WITHOUT_TASK:
            with anyio.CancelScope(shield=True):
                await self._settle(live, live.cancelled_outcome())
            if live.settled.is_set():
                return
            live = await self._find(caller, turn_id)  # it was promoted meanwhile
        if self._registered(turn_id) is live and live.record.status is TurnStatus.IN_PROGRESS:
            live.scope.cancel()
            await live.settled.wait()
        elif live.record.status is TurnStatus.IN_PROGRESS:
            await self._database.run_repeatable(
                acceptance.request_cancel, caller.workspace_id, turn_id, played_ms
            )
            await self._remote_outcomes.wait(live)
        await self._truncate(live, played_ms)

    async def _cancel_unstored(self, caller: Caller, turn_id: UUID) -> bool:
        """Cancel an unstored turn and wait for its end; return whether there is such a turn."""
        live = self._registered(turn_id)
        if live and live.record.workspace_id == caller.workspace_id:
            live.scope.cancel()
            await live.settled.wait()
            return True
        is_asked = False
        while True:
            row = await self._database.run(unstored.find_status, caller.workspace_id, turn_id)
            if row is None or row.status is not TurnStatus.IN_PROGRESS:
                return row is not None
            if not is_asked:
                is_asked = True
                await self._database.run_repeatable(
                    acceptance.request_cancel, caller.workspace_id, turn_id, None
                )
            await anyio.sleep(_POLL_SECONDS)

    async def cancel_waiting(self, workspace_id: UUID, turn_id: UUID) -> None:
        """Cancel a turn that waits for a client's action, for the message that interrupts it."""
        try:
            await self.cancel(Caller(workspace_id), turn_id, None)
        except (crud.TurnNotFound, StorageUnavailable) as error:
            logger.warning("turn %s was not interrupted: %s", turn_id, error)

    async def _truncate(self, live: LiveTurn, played_ms: int | None) -> None:
        if played_ms is None or live.record.output is not Modality.VOICE:
            return
        await self._database.run_repeatable(audio_store.truncate_to_heard, live.record, played_ms)
