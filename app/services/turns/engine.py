"""The turn engine: every way in becomes `start`, every way out follows what it returns.

A turn runs in a task of the server, not of the request: the client may leave. Three steps, each
a short transaction or none: accept, run (nothing is open while a provider thinks), settle.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from uuid import UUID

import anyio
from anyio.abc import TaskGroup, TaskStatus

from app.core.database import Database, StorageUnavailable
from app.core.direct import Program
from app.core.security import Caller
from app.models import Message, Modality, TurnStatus, new_id
from app.services import crud
from app.services.ports import ChatModel
from app.services.turns import acceptance, audio_store, leases, receipts, settlement
from app.services.turns.acceptance import Accepted, NewMessage
from app.services.turns.answering import answer
from app.services.turns.audio_store import AudioStore
from app.services.turns.ending import Ending
from app.services.turns.errors import (
    ServerBusy,
    ServerDraining,
    TurnInterrupted,
    TurnLost,
    error_of_code,
    shutting_down,
)
from app.services.turns.live import LiveTurn
from app.services.turns.personas import Personas
from app.services.turns.records import Outcome, Reply, TurnOptions, TurnRecord, Usage
from app.services.turns.upkeep import Upkeep
from app.services.turns.voice_stages import VoiceMaker, VoiceStages
from app.services.turns.watching import Watch
from app.services.usage import Accounts
from app.services.usage.tariff import usd

logger = logging.getLogger(__name__)

LIVE_TURNS_LIMIT = 2000
_DRAIN_SECONDS = 22
"""Leaves time to settle or give up what is cut off, within the 30 s of a shutdown."""
_RECOVERIES_LIMIT = 1
_AT_ONCE = TurnOptions()
_DEFAULT_AUDIO = AudioStore()
_FREE_FOR_ALL = Accounts()


class TurnEngine:
    """Accepts, runs and settles turns. One instance serves the whole process."""

    def __init__(
        self,
        database: Database,
        chat_model: ChatModel,
        voices: VoiceMaker | None = None,
        audio: AudioStore = _DEFAULT_AUDIO,
        accounts: Accounts = _FREE_FOR_ALL,
    ) -> None:
        """`voices` makes the stages of voice turns that are run again."""
        self._database = database
        self._chat_model = chat_model
        self._voices = voices
        self._audio = audio
        self._accounts = accounts
        self._owner_id = new_id()
        self._personas = Personas()
        self._turns: dict[UUID, LiveTurn] = {}
        """Those that run here or wait here for another; settled ones leave."""
        self._watch = Watch(database)
        self._tasks: TaskGroup | None = None
        self._draining = anyio.Event()
        self._ending = Ending(database, audio, self._owner_id, self._draining)
        self._emptied = anyio.Event()
        """Set when the last turn ends while draining."""
        self._stopped = anyio.Event()

    @property
    def is_draining(self) -> bool:
        """True once the server shuts down: no turn is accepted any more."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Accept no more turns and let followers go; what was accepted has a while to end."""
        self._draining.set()
        for live in self._turns.values():
            live.log.wake()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run turns inside the block; at its end finish those that are live, or give them up."""
        upkeep = Upkeep(
            self._database,
            self._owner_id,
            self._turns,
            self.recover,
            self._draining,
            self._audio,
        )
        async with anyio.create_task_group() as background:
            await background.start(self._run_turns)
            upkeep.start(background)
            background.start_soon(self._watch.run)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    self.drain()
                    await self._stopped.wait()
            background.cancel_scope.cancel()

    async def start(
        self,
        caller: Caller,
        session_id: UUID,
        content: str,
        voice: VoiceStages | None = None,
        options: TurnOptions = _AT_ONCE,
    ) -> LiveTurn:
        """Accept a turn: when this returns it is stored, and will be settled whatever happens.

        A voice turn's `content` is empty. With a key that was used before, its turn is returned.
        Raises `SessionNotFound`, `AgentArchived`, `SessionBusy`, `SessionQueueFull`,
        `IdempotencyKeyReused`, `TooManyTurns`, `UploadsExhausted`, `BudgetExhausted`,
        `ServerBusy`, `ServerDraining` or `StorageUnavailable`.
        """
        if self.is_draining:
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        if len(self._turns) >= LIVE_TURNS_LIMIT:
            raise ServerBusy("This server is full; try again.", retry_after_seconds=1)
        modality = Modality.VOICE if voice else Modality.TEXT
        if caller.session_id not in {None, session_id}:
            raise crud.SessionNotFound("There is no such session.")
        message = NewMessage(
            caller.workspace_id,
            session_id,
            modality,
            content,
            self._accounts.of(caller),
            voice.recording.duration_seconds if voice else None,
            caller.user_id,
        )
        return await self._accept(message, voice, options)

    async def reply_to_text(self, caller: Caller, session_id: UUID, content: str) -> Reply:
        """Answer a message and return the answer; the turn goes on if the caller is cancelled.

        Raises what `start` raises, and the error that the turn ended with.
        """
        return await self.result(await self.start(caller, session_id, content))

    async def result(self, live: LiveTurn) -> Reply:
        """Wait until the turn is settled; return its answer, or raise the error it ended with."""
        if self.runs_here(live):
            await live.settled.wait()
        else:
            await self._settled_elsewhere(live)
        return live.reply()

    async def question(self, live: LiveTurn) -> str:
        """Return what the turn's user said, once it is heard."""
        async with self._database.reading() as db:
            key = (live.record.workspace_id, live.record.user_message_id)
            return (await db.get_one(Message, key)).content

    def runs_here(self, live: LiveTurn) -> bool:
        """Tell whether this server runs the turn in `live`; a queued one may become another's."""
        is_ours = self._turns.get(live.record.id) is live
        return is_ours and live.record.status is TurnStatus.IN_PROGRESS

    def holds(self, live: LiveTurn) -> bool:
        """Tell whether the turn runs here, or waits here for another."""
        return live.record.id in self._turns

    def watching(self, live: LiveTurn) -> AbstractContextManager[None]:
        """While the block runs, `live.log` wakes when a turn changes that runs elsewhere."""
        return self._watch.on(live)

    def newest(self, live: LiveTurn) -> LiveTurn:
        """Return what this server knows of a turn that it may have taken over since."""
        return self._turns.get(live.record.id, live)

    async def find(self, caller: Caller, turn_id: UUID) -> LiveTurn:
        """Return a turn, whoever runs or ran it. Raises `TurnNotFound`."""
        if not caller.sees_every_session:
            async with self._database.reading() as db:
                await crud.get_turn(db, caller, turn_id)
        live = self._turns.get(turn_id)
        if live and live.record.workspace_id == caller.workspace_id:
            return live
        return LiveTurn(await self._database.run(leases.find, caller.workspace_id, turn_id))

    async def cancel(self, caller: Caller, turn_id: UUID, *, played_ms: int | None = None) -> None:
        """End a turn, wherever it runs, and wait until it has ended; its text so far is kept.

        A settled turn stays as it is. `played_ms` says how much of the answer's sound was played,
        also after the end, for it is made faster than it plays: what was heard is stored beside
        the answer, and later prompts use it. Raises `TurnNotFound`.
        """
        live = await self.find(caller, turn_id)
        if played_ms is not None:
            live.played_ms = played_ms
        if live.record.status is TurnStatus.QUEUED:
            await self._settle(live, live.cancelled())
        elif self.runs_here(live):
            live.scope.cancel()
            await live.settled.wait()
            await self._truncate(live, played_ms)
        elif live.record.status is TurnStatus.IN_PROGRESS:
            await self._database.run(
                acceptance.request_cancel, caller.workspace_id, turn_id, played_ms
            )
            await self._settled_elsewhere(live)
            await self._truncate(live, played_ms)
        else:
            await self._truncate(live, played_ms)

    async def look_up(self, live: LiveTurn) -> None:
        """See whether another server, or an earlier request, has settled the turn."""
        if self.runs_here(live):
            return
        async with self._database.reading() as db:
            server = Caller(live.record.workspace_id)
            turn, message = await crud.get_turn(db, server, live.record.id)
        if turn.ended_at is None or live.settled.is_set():
            return
        live.progress.usage = Usage(
            turn.prompt_tokens,
            turn.cached_tokens,
            turn.completion_tokens,
            usd(turn.cost_nanos),
            bool(turn.usage_estimated),
        )
        live.progress.timings = turn.timings or {}
        error = error_of_code(turn.error_code, turn.error_detail or "") if turn.error_code else None
        self._end(live, Outcome(turn.status, message.status, message.content, error))

    async def _truncate(self, live: LiveTurn, played_ms: int | None) -> None:
        if played_ms is None or live.record.modality is not Modality.VOICE:
            return
        await self._database.run(audio_store.truncate_to_heard, live.record, played_ms)

    async def _accept(
        self, message: NewMessage, voice: VoiceStages | None, options: TurnOptions
    ) -> LiveTurn:
        locks = (str(message.session_id), *([options.key.key] if options.key else ()))
        # It cannot be cancelled, and nothing is awaited after it: stored and running, or neither.
        accepted = await self._database.run_with(
            locks, lambda: self._accepting(message, voice, options)
        )
        record = accepted.record
        if accepted.is_replayed:
            running = self._turns.get(record.id)
            if running:
                running.is_replayed = True
                return running
            return LiveTurn(record, is_replayed=True)
        live = LiveTurn(record, voice)
        self._turns[record.id] = live
        if record.status is TurnStatus.IN_PROGRESS:
            self._spawn(live)
        else:
            live.announce()
        if accepted.interrupt_id and accepted.interrupt_id in self._turns:
            self._turns[accepted.interrupt_id].scope.cancel()
        return live

    def _accepting(
        self, message: NewMessage, voice: VoiceStages | None, options: TurnOptions
    ) -> Program[Accepted]:
        accepted = yield from acceptance.accept(message, options, self._owner_id, self._personas)
        if voice and not accepted.is_replayed:
            yield from self._audio.keep_recording(accepted.record, voice)
        return accepted

    def _spawn(self, live: LiveTurn) -> None:
        if self._tasks is None:
            raise RuntimeError("the engine is not running")
        live.begin()
        self._tasks.start_soon(self._run, live)

    async def _run(self, live: LiveTurn) -> None:
        try:
            outcome = await answer(live, self._chat_model, self._database, self._bring_voice)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(3, shield=True):
                await self._give_up(live)
            raise
        live.mark("total_ms")
        await self._settle(live, outcome)

    async def _bring_voice(self, live: LiveTurn) -> None:
        """Make the stages of a voice turn that another server, or an earlier run, accepted."""
        if live.voice or live.record.modality is not Modality.VOICE or self._voices is None:
            return
        async with self._database.reading() as db:
            found = await audio_store.read_recording(
                await db.connection(), live.record.workspace_id, live.record.id
            )
        if found:
            recording, has_clips = found
            live.voice = self._voices.make(recording, has_clips=has_clips)

    async def _settle(self, live: LiveTurn, outcome: Outcome) -> None:
        """Store how the turn ended, say so, and run the session's next turn."""
        receipts.write(live.record, live.progress, outcome.error, self._accounts.tariff)
        with anyio.CancelScope(shield=True):
            outcome, following = await self._ending.store(live, outcome)
            if isinstance(outcome.error, TurnLost) and self._tasks and not self.is_draining:
                self._tasks.start_soon(self._follow_elsewhere, live, outcome)
                return
            self._end(live, outcome)
            if following:
                self._take_over(following)

    async def _follow_elsewhere(self, live: LiveTurn, lost: Outcome) -> None:
        """Tell those who wait for a turn that was taken over how it ends there."""
        if self._turns.get(live.record.id) is live:
            del self._turns[live.record.id]
        try:
            await self._settled_elsewhere(live)
        except crud.TurnNotFound:
            logger.debug("turn %s was deleted", live.record.id)
        finally:
            self._end(live, lost)

    def _take_over(self, record: TurnRecord) -> None:
        """Run a turn that was queued, here or elsewhere."""
        live = self._turns.setdefault(record.id, LiveTurn(record))
        live.record = record
        self._spawn(live)

    def _end(self, live: LiveTurn, outcome: Outcome) -> None:
        ours = self._turns.get(live.record.id)
        if ours and ours.record.attempt <= live.record.attempt:
            del self._turns[live.record.id]
            ours.end(outcome)
        live.end(outcome)
        if self.is_draining and not self._turns:
            self._emptied.set()

    async def _give_up(self, live: LiveTurn) -> None:
        """Leave a turn that shutdown cut off to another server, or to the next start."""
        try:
            async with live.storing:
                await self._database.run(settlement.give_up, live.record, live.log.unstored())
        except (StorageUnavailable, TurnLost):
            logger.warning("turn %s could not be released; its lease will run out", live.record.id)
        finally:
            self._end(live, live.failed(shutting_down()))

    async def _settled_elsewhere(self, live: LiveTurn) -> None:
        """Wait for the end of a turn that is queued, or that another server runs."""
        with self._watch.on(live):
            while not live.settled.is_set():
                changed = live.log.changed
                if self.runs_here(live):  # its turn in the queue has come
                    await live.settled.wait()
                    return
                await self.look_up(live)
                if not live.settled.is_set():
                    await changed.wait()

    async def _run_turns(self, *, task_status: TaskStatus[None]) -> None:
        """Hold the tasks of turns, in a task of its own: cutting them off ends nothing else."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                task_status.started()
                await self._draining.wait()
                with anyio.move_on_after(_DRAIN_SECONDS):
                    if self._turns:
                        await self._emptied.wait()
                tasks.cancel_scope.cancel()
                for live in list(self._turns.values()):
                    if live.record.status is TurnStatus.QUEUED:  # stays queued for who comes next
                        self._end(live, live.failed(shutting_down()))
        finally:
            self._stopped.set()

    async def recover(self, record: TurnRecord, recoveries: int) -> None:
        """Run a turn that was taken over from another server, or from before a long sleep."""
        live = self._turns.get(record.id)
        if live is None or live.record.status is TurnStatus.IN_PROGRESS:
            if live:  # this server was taken for dead, and still runs an older attempt
                live.scope.cancel()
            live = self._turns[record.id] = LiveTurn(record)
        live.take_over(record)
        if recoveries <= _RECOVERIES_LIMIT:
            logger.info("turn %s is run again: the server that ran it stopped", record.id)
            self._spawn(live)
        else:
            error = TurnInterrupted("The server stopped twice during this turn; send it again.")
            await self._settle(live, live.failed(error))
