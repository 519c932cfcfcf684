"""Compare the turns registered in this process with those that the database says it owns."""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select, tuple_

from app.core.database import CommitOutcomeUnknown, Database
from app.models import TurnStatus
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.records import TurnRecord
from app.services.turns.storage import leases
from app.services.turns.storage.leases import OwnedTurn
from app.services.turns.storage.tables import turns

logger = logging.getLogger(__name__)

Recover = Callable[[TurnRecord, int], Awaitable[None]]
Claims = Sequence[tuple[TurnRecord, int]]
"""Turns that this process took over, each with its number of recoveries."""

_TOLERATED_ROUNDS = 1
"""A difference in one round may be a transaction whose answer is on its way."""
_PATIENT_ROUNDS = 4
"""So many rounds a cancelled turn may take to leave the register by itself."""
_TURNS_PER_QUERY = 500
_WAITING = frozenset((TurnStatus.QUEUED, TurnStatus.REQUIRES_ACTION))


@dataclass(frozen=True, slots=True)
class _TurnState:
    status: TurnStatus
    owner_id: UUID | None
    attempt: int

    @property
    def is_settled(self) -> bool:
        return self.status not in _WAITING and self.status is not TurnStatus.IN_PROGRESS


class RegisterReconciler:
    """Takes on turns of this process that it does not run; drops turns that ended elsewhere."""

    def __init__(
        self,
        database: Database,
        owner_id: UUID,
        register: Mapping[UUID, LiveTurn],
        recover: Recover,
        leave: Callable[[LiveTurn], Awaitable[None]],
    ) -> None:
        """`leave` removes a turn from `register` that ended elsewhere or was deleted."""
        self._database = database
        self._owner_id = owner_id
        self._turns = register
        self._recover = recover
        self._leave = leave
        self._unregistered: dict[OwnedTurn, int] = {}
        """Rounds in which a turn was owned, but not registered."""
        self._not_owned: dict[tuple[UUID, int], int] = {}
        """Rounds in which a registered turn, by id and attempt, was not owned."""
        self._unconfirmed: dict[UUID, tuple[TurnRecord, int]] = {}
        """Turns that were taken over in a transaction whose outcome is unknown."""

    async def claim(self, run: Callable[[], Awaitable[Claims]]) -> None:
        """Run a transaction that takes turns over, and start them."""
        try:
            claims = await run()
        except CommitOutcomeUnknown as unknown:
            claims = unknown.result or ()
            self._unconfirmed |= {record.id: (record, count) for record, count in claims}
            raise
        for record, recoveries in claims:
            await self._start(record, recoveries)

    async def compare(self, owned: Collection[OwnedTurn], *, may_take_on: bool) -> None:
        """Mend what was different in the last round and still is."""
        self._unregistered = {
            turn: self._unregistered.get(turn, 0) + 1
            for turn in owned
            if not self._is_running(turn)
        }
        if may_take_on:
            await self._take_on()
        owned_attempts = {(turn.id, turn.attempt) for turn in owned}
        running = [live for live in self._turns.values() if _is_running(live)]
        self._not_owned = {
            key: self._not_owned.get(key, 0) + 1
            for key in ((live.record.id, live.record.attempt) for live in running)
            if key not in owned_attempts
        }
        await self._drop_ended()

    def _is_running(self, turn: OwnedTurn) -> bool:
        live = self._turns.get(turn.id)
        return live is not None and _is_running(live) and live.record.attempt >= turn.attempt

    async def _take_on(self) -> None:
        late = [t for t, rounds in self._unregistered.items() if rounds > _TOLERATED_ROUNDS]
        unknown: list[OwnedTurn] = []
        for turn in late:
            record, recoveries = self._unconfirmed.pop(turn.id, (None, 0))
            if record and record.attempt == turn.attempt:
                await self._start(record, recoveries)
            else:
                unknown.append(turn)
        self._unconfirmed = {i: c for i, c in self._unconfirmed.items() if self._is_awaited(i)}
        if unknown:
            logger.warning("%d turns of this server were not running on it", len(unknown))
            await self.claim(lambda: self._database.run(leases.take_on, self._owner_id, unknown))

    def _is_awaited(self, turn_id: UUID) -> bool:
        """Return whether a turn may still have to be started: it is owned and not registered."""
        return any(turn.id == turn_id for turn in self._unregistered)

    async def _start(self, record: TurnRecord, recoveries: int) -> None:
        try:
            await self._recover(record, recoveries)
        except Exception:  # one turn must not hold up the others
            logger.exception("turn %s could not be taken on", record.id)

    async def _drop_ended(self) -> None:
        late = {key for key, rounds in self._not_owned.items() if rounds > _TOLERATED_ROUNDS}
        suspects = [
            (live, live.record)
            for live in list(self._turns.values())
            if live.record.status in _WAITING or (live.record.id, live.record.attempt) in late
        ]
        for start in range(0, len(suspects), _TURNS_PER_QUERY):
            batch = suspects[start : start + _TURNS_PER_QUERY]
            states = await self._read_states([record for _, record in batch])
            for live, record in batch:
                # A turn that was promoted meanwhile is newer than the state that was read.
                if self._turns.get(record.id) is live and live.record is record:
                    await self._drop(live, states.get(record.id))

    async def _drop(self, live: LiveTurn, state: _TurnState | None) -> None:
        record = live.record
        if record.status in _WAITING:
            if state is None or state.is_settled:
                await self._leave(live)
            return
        is_ours = state is not None and (
            (state.status, state.owner_id, state.attempt)
            == (TurnStatus.IN_PROGRESS, self._owner_id, record.attempt)
        )
        if is_ours:
            return
        live.scope.cancel()  # its task finds out why, and leaves the register
        if self._not_owned.get((record.id, record.attempt), 0) > _PATIENT_ROUNDS:
            await self._leave(live)

    async def _read_states(self, batch: Sequence[TurnRecord]) -> dict[UUID, _TurnState]:
        keys = [(record.workspace_id, record.id) for record in batch]
        query = select(turns.c.id, turns.c.status, turns.c.owner_id, turns.c.attempt).where(
            tuple_(turns.c.workspace_id, turns.c.id).in_(keys)
        )
        async with self._database.reading() as db:
            return {row[0]: _TurnState(*row[1:]) for row in await db.execute(query)}


def _is_running(live: LiveTurn) -> bool:
    return live.record.status is TurnStatus.IN_PROGRESS and not live.settled.is_set()
