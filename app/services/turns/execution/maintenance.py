"""Periodic maintenance: checkpoints, leases, recovery, cancel requests and pruning."""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from app.core.database import CommitOutcomeUnknown, Database, StorageUnavailable
from app.core.database.errors import is_missing_table
from app.core.database.table_statistics import TableStatistics
from app.core.logging import describe_cause, log_fields
from app.models import TurnStatus, utc_now
from app.services.turns.context.history_cache import HistoryCache
from app.services.turns.errors import TurnLost
from app.services.turns.execution.abandoned_forks import AbandonedForks
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.reconciliation import Claims, RegisterReconciler
from app.services.turns.storage import event_store, idempotency_keys, leases, ledger, settlement
from app.services.turns.storage.audio_store import AudioStore
from app.services.turns.storage.tables import LEASE_SECONDS
from app.services.turns.voice_port import SpokenPiece

logger = logging.getLogger(__name__)

_CHECKPOINT_SECONDS = 0.5
"""Interval of checkpoints; an event is stored after at most twice this time."""
_CHECKPOINT_BYTES = 2048
_TOLERATED_FAILURES = 2
"""Failed checkpoints in one round before it is given up, since each may take long."""
_CANCEL_SECONDS = 0.25
_LEASES_SECONDS = LEASE_SECONDS / 3
_PRUNE_SECONDS = 600.0
_FORGET_SECONDS = 60.0
_EXPIRE_SECONDS = 2.0
_STATISTICS_SECONDS = 0.5
_WARNING_SECONDS = 30.0
"""A line of an outage so often, not for each round of each duty."""


class Maintenance:
    """Runs the maintenance tasks of one engine; they continue after database failures."""

    def __init__(  # noqa: PLR0913, PLR0917  # parts of the tasks
        self,
        database: Database,
        owner_id: UUID,
        turns: Mapping[UUID, LiveTurn],
        reconciler: RegisterReconciler,
        draining: anyio.Event,
        audio: AudioStore,
        result_days: int,
        statistics: TableStatistics,
        histories: HistoryCache,
        expire_actions: Callable[[], Awaitable[None]],
    ) -> None:
        self._database = database
        self._owner_id = owner_id
        self._turns = turns
        self._reconciler = reconciler
        self._draining = draining
        self._audio = audio
        self._result_days = result_days
        self._statistics = statistics
        self._histories = histories
        self._expire_actions = expire_actions
        self._forks = AbandonedForks(database)
        self._has_recovered = False
        self.first_round = anyio.Event()
        """Set once turns of stopped servers were looked for."""
        self._warned_at = -math.inf
        self._database_was_available = True
        """False after a round without the database: other servers must renew their leases first."""

    def start(self, background: TaskGroup) -> None:
        """Start all maintenance tasks in `background`; they run until it is cancelled."""
        background.start_soon(self._repeat, _LEASES_SECONDS, self._renew_and_recover)
        background.start_soon(self._repeat, _CHECKPOINT_SECONDS, self._checkpoint)
        background.start_soon(self._repeat, _EXPIRE_SECONDS, self._expire_actions)
        background.start_soon(self._repeat, _PRUNE_SECONDS, self._prune_events)
        background.start_soon(self._repeat, _PRUNE_SECONDS, self._prune_keys)
        background.start_soon(self._repeat, _PRUNE_SECONDS, self._prune_audio)
        background.start_soon(self._repeat, _PRUNE_SECONDS, self._prune_results)
        background.start_soon(self._repeat, _PRUNE_SECONDS, self._forks.discard)
        background.start_soon(self._repeat, _FORGET_SECONDS, self._histories.discard_expired)
        if not self._database.is_sqlite:  # only one server uses SQLite
            background.start_soon(self._repeat, _CANCEL_SECONDS, self._apply_cancel_requests)
            background.start_soon(self._repeat, _STATISTICS_SECONDS, self._statistics.refresh)

    async def _repeat(self, seconds: float, duty: Callable[[], Awaitable[None]]) -> None:
        fault: str | None = None
        while True:
            try:
                await duty()
            except StorageUnavailable as error:
                self._warn_of_outage(error)
            except Exception as error:
                is_known = is_missing_table(error) or fault == type(error).__name__
                if not is_known:  # missing tables are reported at the start
                    logger.exception("a maintenance task of the turn engine failed")
                fault = type(error).__name__
            else:
                fault = None
            await anyio.sleep(seconds)

    def _warn_of_outage(self, error: StorageUnavailable) -> None:
        now = time.monotonic()
        if now - self._warned_at < _WARNING_SECONDS:
            return
        self._warned_at = now
        cause = describe_cause(error)
        logger.warning("the database is away", extra=log_fields(cause=cause, code=error.code))

    async def _renew_and_recover(self) -> None:
        """Renew this server's leases, and take over turns whose lease expired.

        Then compare the register with what the database says that this server owns.
        """
        alone = self._database.is_sqlite
        was_steady, self._database_was_available = self._database_was_available, False
        running = [
            live.record.id
            for live in self._turns.values()
            if live.record.status is TurnStatus.IN_PROGRESS
        ]
        if running and not alone:
            await self._database.run(leases.renew_leases, self._owner_id, running)
        owned = await self._database.run(leases.owned_turns, self._owner_id)
        may_claim = not self._has_recovered if alone else was_steady
        if may_claim and not self._draining.is_set():
            await self._reconciler.claim(self._recover_expired)
            self.first_round.set()
        self._database_was_available = True
        await self._reconciler.compare(owned, may_take_on=not self._draining.is_set())

    async def _recover_expired(self) -> Claims:
        registered = frozenset(self._turns)
        alone = self._database.is_sqlite
        orphans = await self._database.run(
            leases.recover_expired, self._owner_id, registered, all_others=alone
        )
        self._has_recovered = not orphans
        return orphans

    async def _checkpoint(self) -> None:
        """Store the events of all running turns; the failure of one does not stop the others."""
        failures = 0
        for live in list(self._turns.values()):
            if live.record.status is not TurnStatus.IN_PROGRESS or live.settled.is_set():
                continue
            if not live.record.keeps_content:
                continue
            try:
                await self._checkpoint_turn(live)
            except CommitOutcomeUnknown:
                live.has_unknown_commit = True
            except StorageUnavailable:
                failures += 1
                if failures > _TOLERATED_FAILURES:  # the database is away
                    raise
            except Exception:
                logger.exception("turn %s could not be checkpointed", live.record.id)

    async def _checkpoint_turn(self, live: LiveTurn) -> None:
        """Store audio, and events that waited for one round or exceed 2 KB."""
        unstored, pieces = live.log.unstored_events(), self._pieces_for_remote_listeners(live)
        is_due = live.had_unstored_events or sum(len(e.json) for e in unstored) > _CHECKPOINT_BYTES
        live.had_unstored_events = bool(unstored)
        if not pieces and not (unstored and is_due):
            return
        async with live.store_lock:
            unstored, pieces = live.log.unstored_events(), self._pieces_for_remote_listeners(live)
            if live.settled.is_set() or not (unstored or pieces):
                return
            sound = self._audio.insert_pieces_stmts(live.record, pieces)
            try:
                await self._database.run(
                    settlement.checkpoint,
                    live.record,
                    unstored,
                    sound,
                    may_be_stored=live.has_unknown_commit,
                )
            except TurnLost:
                live.scope.cancel()
                return
            live.has_unknown_commit = False
            live.log.mark_stored(len(unstored))
            live.stored_pieces += len(pieces)
            live.had_unstored_events = False

    def _pieces_for_remote_listeners(self, live: LiveTurn) -> Sequence[SpokenPiece]:
        """Return unstored audio for subscribers on other servers, if there can be any."""
        if self._database.is_sqlite or not self._audio.kept_days:
            return ()
        return live.unstored_pieces()

    async def _apply_cancel_requests(self) -> None:
        if not self._turns:
            return
        requests = await self._database.run(leases.cancel_requests, self._owner_id)
        for turn_id, played_ms in requests:
            if live := self._turns.get(turn_id):
                live.played_ms = played_ms if live.played_ms is None else live.played_ms
                live.scope.cancel()

    async def _prune_events(self) -> None:
        await self._database.run(event_store.prune)

    async def _prune_keys(self) -> None:
        await self._database.run(idempotency_keys.prune)

    async def _prune_audio(self) -> None:
        await self._database.run(self._audio.prune)

    async def _prune_results(self) -> None:
        before = utc_now() - timedelta(days=self._result_days)
        while await self._database.run(ledger.prune_results, before):
            pass  # a batch each time
