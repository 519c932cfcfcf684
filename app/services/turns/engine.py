"""The turn engine: every way in becomes `start`, every way out follows what it returns.

A turn runs in a task of the server, not of the request: the client may leave. Three steps, each
a short transaction or none: accept, run (nothing is open while a provider thinks), settle.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from uuid import UUID

import anyio

from app.core.database import Database, StorageUnavailable
from app.core.direct import Program
from app.core.security import Caller
from app.models import Message, Modality, TurnStatus, new_id
from app.services import crud
from app.services.ports import ChatModel
from app.services.turns import acceptance, audio_store, leases, receipts
from app.services.turns.acceptance import Accepted, Known, NewMessage
from app.services.turns.answering import answer
from app.services.turns.audio_store import AudioStore
from app.services.turns.ending import Ending, read_end
from app.services.turns.errors import (
    InternalError,
    ServerBusy,
    ServerDraining,
    TurnInterrupted,
    TurnLost,
    shutting_down,
)
from app.services.turns.live import LiveTurn
from app.services.turns.records import Outcome, Reply, TurnOptions, TurnRecord
from app.services.turns.running import DRAIN_SECONDS, Running
from app.services.turns.statistics import Statistics
from app.services.turns.upkeep import Upkeep
from app.services.turns.voice_stages import VoiceMaker, VoiceStages
from app.services.turns.watching import Watch
from app.services.usage import Accounts

logger = logging.getLogger(__name__)

LIVE_TURNS_LIMIT = 2000
_RECOVERIES_LIMIT = 1
_AT_ONCE = TurnOptions()
_DEFAULT_AUDIO = AudioStore()
_FREE_FOR_ALL = Accounts()


class TurnEngine:
    """Accepts, runs and settles turns. One instance serves the whole process."""

    def __init__(  # noqa: PLR0913  # a part each
        self,
        database: Database,
        chat_model: ChatModel,
        voices: VoiceMaker | None = None,
        audio: AudioStore = _DEFAULT_AUDIO,
        accounts: Accounts = _FREE_FOR_ALL,
        *,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        """`voices` makes the stages of voice turns that are run again."""
        self._database = database
        self._chat_model = chat_model
        self._voices = voices
        self._audio = audio
        self._accounts = accounts
        self._owner_id = new_id()
        self.known = Known()
        """What need not be loaded again."""
        self._turns: dict[UUID, LiveTurn] = {}
        """Those that run here or wait here for another; settled ones leave."""
        self._watch = Watch(database)
        self._statistics = Statistics(database)
        self._running = Running(self._turns, self._leave, drain_seconds)
        self._ending = Ending(database, audio, self._owner_id, self._running.draining)

    @property
    def is_draining(self) -> bool:
        """True once the server shuts down: no turn is accepted any more."""
        return self._running.draining.is_set()

    def drain(self) -> None:
        """Accept no more turns and let followers go; what was accepted has a while to end."""
        self._running.drain()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run turns inside the block; at its end finish those that are live, or give them up."""
        upkeep = Upkeep(
            self._database,
            self._owner_id,
            self._turns,
            self.recover,
            self._running.draining,
            self._audio,
            self._statistics,
            self.known.histories,
        )
        async with anyio.create_task_group() as background:
            await background.start(self._running.run)
            upkeep.start(background)
            background.start_soon(self._watch.run)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    self.drain()
                    await self._running.stopped.wait()
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
            with anyio.CancelScope(shield=True):
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
        outcome = await read_end(self._database, live)
        if outcome and not live.settled.is_set():
            self._end(live, outcome)

    async def _truncate(self, live: LiveTurn, played_ms: int | None) -> None:
        if played_ms is None or live.record.modality is not Modality.VOICE:
            return
        await self._database.run(audio_store.truncate_to_heard, live.record, played_ms)

    async def _accept(
        self, message: NewMessage, voice: VoiceStages | None, options: TurnOptions
    ) -> LiveTurn:
        locks = (str(message.session_id), *([options.key.key] if options.key else ()))
        # Whoever asks may leave: it is stored and running, or neither.
        return await self._database.run_with(
            locks,
            lambda: self._accepting(message, voice, options),
            lambda accepted: self._take_on(accepted, voice),
        )

    def _take_on(self, accepted: Accepted, voice: VoiceStages | None) -> LiveTurn:
        record = accepted.record
        if accepted.is_replayed:
            running = self._turns.get(record.id)
            if running:
                running.is_replayed = True
                return running
            return LiveTurn(record, is_replayed=True)
        self._statistics.turns += 1
        self.known.histories.keep((record.workspace_id, record.session_id), accepted.settled)
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
        accepted = yield from acceptance.accept(message, options, self._owner_id, self.known)
        if voice and not accepted.is_replayed:
            yield from self._audio.keep_recording(accepted.record, voice)
        return accepted

    def _spawn(self, live: LiveTurn) -> None:
        self._running.begin(live, self._run(live))

    async def _run(self, live: LiveTurn) -> None:
        try:
            outcome = await answer(live, self._chat_model, self._database, self._voices)
            if live.is_cut_off and outcome.status is TurnStatus.CANCELLED:
                await self._ending.give_up(live)
                self._leave(live)
                return
            live.mark("total_ms")
            await self._settle(live, outcome)
        except Exception:  # its lease runs out, and it is run again
            logger.exception("turn %s broke off", live.record.id)
            self._end(live, live.failed(InternalError("The server failed; its log says why.")))

    async def _settle(self, live: LiveTurn, outcome: Outcome) -> None:
        """Store how the turn ended, say so, and run the session's next turn.

        The caller is never cancelled.
        """
        receipts.write(live.record, live.progress, outcome.error, self._accounts.tariff)
        outcome, following = await self._ending.store(live, outcome)
        if isinstance(outcome.error, TurnLost) and not self.is_draining:
            self._running.follow(self._follow_elsewhere(live, outcome))
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
        except (crud.TurnNotFound, StorageUnavailable) as error:
            logger.debug("turn %s is not followed any more: %s", live.record.id, error)
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
        self._running.notice_end()

    def _leave(self, live: LiveTurn) -> None:
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
