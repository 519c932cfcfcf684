"""The turn engine: every endpoint starts a turn with `start` and follows the returned `LiveTurn`.

A turn runs in a task of the server, not of the request, so the client may disconnect: accept (one
transaction), run (none is open during provider calls), settle (one transaction).
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from uuid import UUID

import anyio

from app.core.database import CommitOutcomeUnknown, Database
from app.core.database.table_statistics import TableStatistics
from app.core.database.transactions import TransactionScript
from app.core.logging import log_fields
from app.core.request_context import set_context
from app.core.security import Caller
from app.models import Modality, TurnStatus, new_id
from app.services import crud
from app.services.ports import ChatModel
from app.services.tool_ports import ToolRunner
from app.services.turns import receipts
from app.services.turns.context.attachments import PromptFiles
from app.services.turns.errors import (
    InternalError,
    ServerBusy,
    ServerDraining,
    TurnLost,
    acceptance_unknown,
    interrupted_by_crash,
    interrupted_by_shutdown,
    turn_lost,
)
from app.services.turns.execution.actions import TurnActions
from app.services.turns.execution.agent_loop import TurnRuntime
from app.services.turns.execution.cancellation import TurnCanceller
from app.services.turns.execution.compaction import Compaction
from app.services.turns.execution.finalization import TurnFinalizer
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.maintenance import Maintenance
from app.services.turns.execution.reconciliation import RegisterReconciler
from app.services.turns.execution.remote_outcomes import RemoteOutcomes
from app.services.turns.execution.remote_turns import RemoteTurnWatcher
from app.services.turns.execution.run_turn import run_turn
from app.services.turns.execution.turn_observer import SilentTurnObserver, TurnObserver
from app.services.turns.execution.turn_tasks import DRAIN_SECONDS, TurnTasks
from app.services.turns.execution.upload_admission import UploadAdmission
from app.services.turns.records import Outcome, Reply, TurnOptions, TurnRecord
from app.services.turns.storage import acceptance, leases, unstored
from app.services.turns.storage.acceptance import AcceptedTurn, NewMessage, TurnCache
from app.services.turns.storage.acceptance_lookup import confirm_acceptance
from app.services.turns.storage.audio_store import AudioStore
from app.services.turns.voice_port import VoiceStages, VoiceStagesFactory
from app.services.usage import TURN_BYTES, AccountDirectory, StorageMeter

logger = logging.getLogger(__name__)

LIVE_TURNS_LIMIT, _RECOVERIES_LIMIT = 2000, 1
_DEFAULT_OPTIONS, _DEFAULT_AUDIO = TurnOptions(), AudioStore()
_UNLIMITED_ACCOUNTS, _NO_OBSERVER = AccountDirectory(), SilentTurnObserver()


class TurnEngine:
    """Accepts, runs and settles turns. One instance serves the whole process."""

    def __init__(  # noqa: PLR0913  # a part each
        self,
        database: Database,
        chat_model: ChatModel,
        voices: VoiceStagesFactory | None = None,
        audio: AudioStore = _DEFAULT_AUDIO,
        accounts: AccountDirectory = _UNLIMITED_ACCOUNTS,
        *,
        storage: StorageMeter | None = None,
        tool_runner: ToolRunner | None = None,
        files: PromptFiles | None = None,
        result_days: int = 30,
        compacts_context: bool = False,
        drain_seconds: float = DRAIN_SECONDS,
        observer: TurnObserver = _NO_OBSERVER,
    ) -> None:
        """`voices` restarts voice turns; full results of tools are kept for `result_days`."""
        self._database, self._owner_id = database, new_id()
        compaction = Compaction(database, chat_model, accounts.tariff) if compacts_context else None
        self._runtime = TurnRuntime(
            database, chat_model, voices, tool_runner, accounts.tariff, compaction, files
        )
        self._audio, self._accounts, self._observer = audio, accounts, observer
        self._storage, self._result_days = storage, result_days
        self.cache = TurnCache()
        self._turns: dict[UUID, LiveTurn] = {}
        """Unsettled turns that run or are queued on this server, by id."""
        watcher = self._remote_turns = RemoteTurnWatcher(database)
        self._remote_outcomes = RemoteOutcomes(database, watcher, self.runs_here, self._end)
        self._table_statistics = TableStatistics(database)
        tasks = self._tasks = TurnTasks(self._turns, self._release, drain_seconds)
        self._canceller = TurnCanceller(
            database, self._remote_outcomes, self._turns.get, self.find, self._settle
        )
        self.uploads = UploadAdmission(database, accounts, self._require_room)
        self.actions = TurnActions(database, self._owner_id, self._tasks, self._resume, watcher)
        self._finalizer = TurnFinalizer(database, audio, self._owner_id, tasks.draining, storage)

    @property
    def is_draining(self) -> bool:
        """True once the server shuts down; then no turns are accepted."""
        return self._tasks.draining.is_set()

    @property
    def is_stopped(self) -> bool:
        """True once the server shuts down and no turn runs any more."""
        return self._tasks.stopped.is_set()

    @property
    def is_full(self) -> bool:
        """True while no turn is accepted because as many as can be run or wait here."""
        return len(self._turns) >= LIVE_TURNS_LIMIT

    def turn_counts(self) -> dict[str, int]:
        """Return how many turns run or wait in this process, by status."""
        return self._tasks.counts()

    def register_sizes(self) -> dict[str, int]:
        """Return the sizes of what this process remembers, by name; idle, the first two are 0."""
        return {
            "turns": len(self._turns),
            "watched_turns": self._remote_turns.watched_count,
            "turn_tasks": self._tasks.task_count,
            "histories": self.cache.histories.entry_count,
        }

    def drain(self) -> None:
        """Accept no more turns; what runs here has a while to end, and its followers stay."""
        self._tasks.drain()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run turns during the block; at its end finish live turns, or release them."""
        reconciler = RegisterReconciler(
            self._database, self._owner_id, self._turns, self.recover, self._remote_outcomes.leave
        )
        self._maintenance = Maintenance(
            self._database,
            self._owner_id,
            self._turns,
            reconciler,
            self._tasks.draining,
            self._audio,
            self._result_days,
            self._table_statistics,
            self.cache.histories,
            self.actions.expire_due,
        )
        async with anyio.create_task_group() as background:
            await background.start(self._tasks.run)
            self._maintenance.start(background)
            background.start_soon(self._remote_turns.run)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    self.drain()
                    await self._tasks.stopped.wait()
            background.cancel_scope.cancel()

    async def start(
        self,
        caller: Caller,
        session_id: UUID,
        content: str,
        voice: VoiceStages | None = None,
        options: TurnOptions = _DEFAULT_OPTIONS,
    ) -> LiveTurn:
        """Insert the user message and the turn, and start or queue it; return the live turn.

        It will be settled, even if this server stops. `content` is empty with a recording and
        without `keeps_content`. A used key returns its turn. Raises what `acceptance.accept` does,
        `StorageFull`, `ServerBusy`, `ServerDraining` and `StorageUnavailable`.
        """
        self._require_room(caller, session_id)
        recording = voice.recording if voice else None
        if self._storage:
            given = recording.data if recording else content.encode()
            size = TURN_BYTES + len(given) + options.more_bytes
            await self._storage.require_room(caller.workspace_id, size)
            self._require_room(caller, session_id)  # it may have begun to drain meanwhile
        message = NewMessage(
            caller.workspace_id,
            session_id,
            Modality.VOICE if recording else Modality.TEXT,
            content,
            self._accounts.of(caller),
            recording.duration_seconds if recording else None,
            Modality.VOICE if voice and voice.speaks else Modality.TEXT,
            caller.user_id,
        )
        with self._tasks.accepting():
            return await self._accept(message, voice, options)

    def _require_room(self, caller: Caller, session_id: UUID) -> None:
        if self.is_draining:
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        if self.is_full:
            raise ServerBusy("This server runs as many turns as it can.", retry_after_seconds=1)
        if caller.session_id not in {None, session_id}:
            raise crud.session_not_found()

    async def wait(self, live: LiveTurn) -> None:
        """Wait until the turn is settled. Raises `TurnNotFound` and `TurnStateUnknown`."""
        if self.runs_here(live):
            await live.settled.wait()
        else:
            await self._remote_outcomes.wait(live)

    async def result(self, live: LiveTurn) -> Reply:
        """Wait until the turn is settled; return its reply, or raise the error it ended with."""
        await self.wait(live)
        return live.reply()

    def runs_here(self, live: LiveTurn) -> bool:
        """Return whether this server runs `live`; another server may take over a queued turn."""
        record = live.record
        return self._turns.get(record.id) is live and record.status is TurnStatus.IN_PROGRESS

    def holds(self, live: LiveTurn) -> bool:
        """Return whether the turn runs or is queued on this server."""
        return live.record.id in self._turns

    def watching(self, live: LiveTurn) -> AbstractContextManager[None]:
        """During the block, wake `live.log` when the turn changes on another server."""
        return self._remote_turns.watch(live)

    def current(self, live: LiveTurn) -> LiveTurn:
        """Return this server's own `LiveTurn` of the turn if it has one, else `live`."""
        return self._turns.get(live.record.id, live)

    async def find(self, caller: Caller, turn_id: UUID) -> LiveTurn:
        """Return a turn, on whichever server it runs or ran. Raises `TurnNotFound`."""
        if not caller.sees_all_sessions:
            async with self._database.reading() as db:
                await crud.get_turn(db, caller, turn_id)
        live = self._turns.get(turn_id)
        if live and live.is_found_in(caller.workspace_id):
            return live
        return LiveTurn(await self._database.run(leases.find, caller.workspace_id, turn_id))

    async def cancel(self, caller: Caller, turn_id: UUID, *, played_ms: int | None = None) -> None:
        """Cancel a turn on any server, and wait until it is settled; its text so far is stored.

        A settled turn is not changed, but for `played_ms`, the played part of the answer's audio:
        the text of that part is stored and used in later prompts. Raises `TurnNotFound`.
        """
        await self._canceller.cancel(caller, turn_id, played_ms)

    async def refresh(self, live: LiveTurn) -> None:
        """Load the outcome of a turn that another server, or an earlier request, has settled."""
        await self._remote_outcomes.refresh(live)

    def discard_session(self, workspace_id: UUID, session_id: UUID) -> None:
        """Cancel the turns of a deleted session on this server; other servers notice it soon."""
        self.cache.histories.discard((workspace_id, session_id))
        for live in [live for live in self._turns.values() if live.record.session_id == session_id]:
            if live.record.status is TurnStatus.IN_PROGRESS:
                live.scope.cancel()
            else:
                self._end(live, live.failed_outcome(turn_lost()))

    async def _accept(
        self, message: NewMessage, voice: VoiceStages | None, options: TurnOptions
    ) -> LiveTurn:
        locks = (str(message.session_id), *([options.key.key] if options.key else ()))
        # If the client disconnects here, the turn is either stored and started, or neither.
        try:
            return await self._database.run_batched(
                locks,
                lambda: self._acceptance_script(message, voice, options),
                lambda accepted: self._register(accepted, voice),
                confirm_acceptance,
            )
        except CommitOutcomeUnknown as unknown:
            raise acceptance_unknown(message.turn_id) from unknown

    def _register(self, accepted: AcceptedTurn, voice: VoiceStages | None) -> LiveTurn:
        record = accepted.record
        if accepted.is_replayed or accepted.is_taken_over:
            live = self.current(LiveTurn(record))
            live.is_replayed |= accepted.is_replayed
            return live
        self._table_statistics.accepted_turns += 1
        self.cache.histories.put((record.workspace_id, record.session_id), accepted.settled)
        live = LiveTurn(record, voice)
        self._turns[record.id] = live
        if record.status is TurnStatus.IN_PROGRESS:
            self._spawn(live)
        else:
            live.emit_acceptance()
        if accepted.interrupt_id and accepted.interrupt_id in self._turns:
            self._turns[accepted.interrupt_id].scope.cancel()
        elif accepted.interrupt_id and accepted.interrupts_waiting:
            waiting = self._canceller.cancel_waiting(record.workspace_id, accepted.interrupt_id)
            self._tasks.start_follower(waiting)
        return live

    def _acceptance_script(
        self, message: NewMessage, voice: VoiceStages | None, options: TurnOptions
    ) -> TransactionScript[AcceptedTurn]:
        accept = acceptance.accept if options.keeps_content else unstored.accept
        accepted = yield from accept(message, options, self._owner_id, self.cache)
        if voice and not accepted.is_replayed:
            yield from self._audio.store_recording(accepted.record, voice)
        return accepted

    def _spawn(self, live: LiveTurn) -> None:
        self._tasks.start(live, self._run(live))

    async def _run(self, live: LiveTurn) -> None:
        set_context(live.context)
        try:
            outcome = await run_turn(live, self._runtime)
            if live.is_interrupted_by_shutdown and outcome.status is TurnStatus.CANCELLED:
                await self._finalizer.release(live)
                self._observer.turn_released(live)
                self._release(live)
                return
            live.mark("total_ms")
            await self._settle(live, outcome)
        except Exception:  # its lease expires, and the turn is restarted
            logger.exception("turn failed with an unexpected error")
            outcome = live.failed_outcome(InternalError("The server failed; its log says why."))
            self._observer.turn_ended(live, outcome)
            self._end(live, outcome)

    async def _settle(self, live: LiveTurn, outcome: Outcome) -> None:
        """Store the outcome, publish the terminal event, and start the session's next turn.

        Must not be cancelled; the callers ensure that.
        """
        record = live.record
        live.note_attempts()
        receipts.write_receipt(record, live.progress, outcome.error, self._accounts.tariff)
        outcome, following = await self._finalizer.store(live, outcome)
        if isinstance(outcome.error, TurnLost) and live.record is not record:
            return  # it was queued, and was promoted here meanwhile
        if isinstance(outcome.error, TurnLost) and not self.is_draining:
            self._observer.turn_ended(live, outcome)
            self._release_to_other_server(live, outcome)
            return
        if following and following.id == record.id:  # all actions were taken meanwhile
            self._resume(following)
        elif following:  # first, so that a draining server does not stop between the two
            self._run_promoted(following)
        self._end(live, outcome)
        self._observer.turn_ended(live, outcome)  # what waits for the turn comes first

    def _release_to_other_server(self, live: LiveTurn, lost: Outcome) -> None:
        if self._turns.get(live.record.id) is live:
            del self._turns[live.record.id]
        self._tasks.start_follower(self._remote_outcomes.publish(live, lost))

    def _run_promoted(self, record: TurnRecord) -> None:
        """Run a turn that was queued, here or elsewhere."""
        live = self._turns.setdefault(record.id, LiveTurn(record))
        if live.record.status is TurnStatus.IN_PROGRESS and live.record is not record:
            return  # it was taken on while the answer of the COMMIT was lost
        live.record = record
        self._spawn(live)

    def _resume(self, record: TurnRecord) -> None:
        """Run a turn that waited for actions."""
        live = self._turns[record.id] = LiveTurn(record)
        live.take_over(record)
        self._spawn(live)

    def _end(self, live: LiveTurn, outcome: Outcome) -> None:
        registered = self._turns.get(live.record.id)
        if registered and registered.record.attempt <= live.record.attempt:
            del self._turns[live.record.id]
            registered.end(outcome)
        live.end(outcome)
        self._tasks.turn_ended()

    def _release(self, live: LiveTurn) -> None:
        self._end(live, live.failed_outcome(interrupted_by_shutdown()))

    async def recover(self, record: TurnRecord, recoveries: int) -> None:
        """Restart a turn whose lease expired: its server stopped, or this machine was suspended."""
        live = self._turns.get(record.id)
        if live is None or live.record.status is TurnStatus.IN_PROGRESS:
            if live:  # this server's own lease expired; it still runs an older attempt
                live.scope.cancel()
            live = self._turns[record.id] = LiveTurn(record)
        live.take_over(record)
        if recoveries <= _RECOVERIES_LIMIT and record.keeps_content:
            ids = log_fields(turn_id=str(record.id), attempt=record.attempt)
            logger.info("turn is run again: the server that ran it stopped", extra=ids)
            self._spawn(live)
        else:
            await self._settle(live, live.failed_outcome(interrupted_by_crash()))
