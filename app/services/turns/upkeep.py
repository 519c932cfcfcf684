"""What goes on beside the turns: checkpoints, leases, cancel requests, take-over, pruning."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from app.core.database import Database, StorageUnavailable
from app.models import TurnStatus
from app.services.turns import event_store, leases, settlement
from app.services.turns.audio_store import AudioStore
from app.services.turns.errors import TurnLost
from app.services.turns.histories import Histories
from app.services.turns.live import LiveTurn
from app.services.turns.records import TurnRecord
from app.services.turns.statements import LEASE_SECONDS
from app.services.turns.statistics import Statistics
from app.services.turns.voice_stages import SpokenPiece

logger = logging.getLogger(__name__)

Recover = Callable[[TurnRecord, int], Awaitable[None]]

_CHECKPOINT_SECONDS = 0.5
"""An event waits at most twice this long until it is stored."""
_CHECKPOINT_BYTES = 2048
_CANCEL_SECONDS = 0.25
_LEASES_SECONDS = LEASE_SECONDS / 3
_PRUNE_SECONDS = 600.0
_FORGET_SECONDS = 60.0
_STATISTICS_SECONDS = 0.5


class Upkeep:
    """Keeps the turns of one engine; a database that is away is tried again, never fatal."""

    def __init__(  # noqa: PLR0913, PLR0917  # what the duties need
        self,
        database: Database,
        owner_id: UUID,
        turns: Mapping[UUID, LiveTurn],
        recover: Recover,
        draining: anyio.Event,
        audio: AudioStore,
        statistics: Statistics,
        histories: Histories,
    ) -> None:
        self._database = database
        self._owner_id = owner_id
        self._turns = turns
        self._recover = recover
        self._draining = draining
        self._audio = audio
        self._statistics = statistics
        self._histories = histories
        self._has_recovered = False
        self._is_steady = True
        """False after a round in which the database was away: the others renew theirs first."""

    def start(self, background: TaskGroup) -> None:
        """Run every duty in `background` until it is cancelled."""
        background.start_soon(self._each, _LEASES_SECONDS, self._keep_leases)
        background.start_soon(self._each, _CHECKPOINT_SECONDS, self._checkpoint)
        background.start_soon(self._each, _PRUNE_SECONDS, self._prune)
        background.start_soon(self._each, _FORGET_SECONDS, self._histories.forget_old)
        if not self._database.is_sqlite:  # which has no other server
            background.start_soon(self._each, _CANCEL_SECONDS, self._cancel_where_asked)
            background.start_soon(self._each, _STATISTICS_SECONDS, self._statistics.refresh)

    async def _each(self, seconds: float, duty: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await duty()
            except StorageUnavailable:
                logger.warning("the database is away")
            except Exception:  # such as tables that are not there yet
                logger.exception("upkeep failed")
            await anyio.sleep(seconds)

    async def _keep_leases(self) -> None:
        """Say that this server lives, and take over the turns of those that do not."""
        alone = self._database.is_sqlite
        was_steady, self._is_steady = self._is_steady, False
        orphans: list[tuple[TurnRecord, int]] = []
        if self._turns and not alone:
            await self._database.run(leases.renew_leases, self._owner_id)
        may_claim = not self._has_recovered if alone else was_steady
        if may_claim and not self._draining.is_set():
            running = frozenset(self._turns)
            orphans = await self._database.run(
                leases.claim_orphans, self._owner_id, running, every=alone
            )
        self._has_recovered = not orphans
        self._is_steady = True
        for record, recoveries in orphans:
            await self._recover(record, recoveries)

    async def _checkpoint(self) -> None:
        for live in list(self._turns.values()):
            if live.record.status is TurnStatus.IN_PROGRESS and not live.settled.is_set():
                await self._checkpoint_one(live)

    async def _checkpoint_one(self, live: LiveTurn) -> None:
        """Store the events that have waited for one round, or are large, and what was spoken."""
        unstored, pieces = live.log.unstored(), self._pieces_for_others(live)
        is_due = live.seen_unstored or sum(len(e.data) for e in unstored) > _CHECKPOINT_BYTES
        live.seen_unstored = bool(unstored)
        if not pieces and not (unstored and is_due):
            return
        async with live.storing:
            unstored, pieces = live.log.unstored(), self._pieces_for_others(live)
            if live.settled.is_set() or not (unstored or pieces):
                return
            sound = self._audio.keeping(live.record, pieces)
            try:
                await self._database.run(settlement.checkpoint, live.record, unstored, sound)
            except TurnLost:
                live.scope.cancel()
                return
            live.log.stored(len(unstored))
            live.stored_pieces += len(pieces)
            live.seen_unstored = False

    def _pieces_for_others(self, live: LiveTurn) -> Sequence[SpokenPiece]:
        """Return what listeners on other servers have yet to hear, if there can be any."""
        if self._database.is_sqlite or not self._audio.kept_days:
            return ()
        return live.unstored_pieces()

    async def _cancel_where_asked(self) -> None:
        if not self._turns:
            return
        asked = await self._database.run(leases.cancel_requests, self._owner_id)
        for turn_id, played_ms in asked:
            if live := self._turns.get(turn_id):
                live.played_ms = played_ms if live.played_ms is None else live.played_ms
                live.scope.cancel()

    async def _prune(self) -> None:
        await self._database.run(event_store.prune)
        await self._database.run(self._audio.prune)
