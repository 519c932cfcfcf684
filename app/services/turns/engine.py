"""The turn engine: every way in becomes `start`, every way out follows what it returns.

A turn runs in a task of the server, not of the request: the client may leave. Three steps, each
a short transaction or none: accept, run (nothing is open while a provider thinks), settle.
"""

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from app.core.database import Database, StorageUnavailable
from app.core.security import Caller
from app.models import Message, Modality, TurnStatus, new_id
from app.services import crud
from app.services.ports import ChatModel
from app.services.turns import acceptance, leases, settlement
from app.services.turns.acceptance import NewMessage
from app.services.turns.answering import answer
from app.services.turns.errors import (
    InternalError,
    ServerBusy,
    ServerDraining,
    TurnInterrupted,
    TurnLost,
    error_of_code,
)
from app.services.turns.live import LiveTurn, VoiceStages
from app.services.turns.records import Outcome, Reply, TurnOptions, TurnRecord, Usage
from app.services.turns.upkeep import Upkeep

logger = logging.getLogger(__name__)

LIVE_TURNS_LIMIT = 2000
_SETTLE_PATIENCE_SECONDS = 60
_DRAIN_SECONDS = 22
"""Leaves time to settle or give up what is cut off, within the 30 s of a shutdown."""
_FOLLOW_SECONDS = 0.2
"""How often a turn that another server runs, or may run, is looked up."""
_RECOVERIES_LIMIT = 1
_AT_ONCE = TurnOptions()


class TurnEngine:
    """Accepts, runs and settles turns. One instance serves the whole process."""

    def __init__(self, database: Database, chat_model: ChatModel) -> None:
        self._database = database
        self._chat_model = chat_model
        self._owner_id = new_id()
        self._turns: dict[UUID, LiveTurn] = {}
        """Those that run here or wait here for another; settled ones leave."""
        self._tasks: TaskGroup | None = None
        self._draining = anyio.Event()
        self._emptied = anyio.Event()
        """Set when the last turn ends while draining."""

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
        upkeep = Upkeep(self._database, self._owner_id, self._turns, self._recover, self._draining)
        async with anyio.create_task_group() as background:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                upkeep.start(background)
                background.start_soon(self._cut_off_when_draining, tasks)
                try:
                    yield
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._drain_and_cut_off(tasks)
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
        `IdempotencyKeyReused`, `ServerBusy`, `ServerDraining` or `StorageUnavailable`.
        """
        if self.is_draining:
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        if len(self._turns) >= LIVE_TURNS_LIMIT:
            raise ServerBusy("This server is full; try again.", retry_after_seconds=1)
        modality = Modality.VOICE if voice else Modality.TEXT
        message = NewMessage(caller.workspace_id, session_id, modality, content)
        with anyio.CancelScope(shield=True):  # stored and running, or neither
            return await self._accept(message, voice, options)
        raise AssertionError("nobody cancels the scope")

    async def reply_to_text(self, caller: Caller, session_id: UUID, content: str) -> Reply:
        """Answer a message and return the answer; the turn goes on if the caller is cancelled.

        Raises what `start` raises, and the error that the turn ended with.
        """
        return await self.result(await self.start(caller, session_id, content))

    async def result(self, live: LiveTurn) -> Reply:
        """Wait until the turn is settled; return its answer, or raise the error it ended with."""
        while not live.settled.is_set():
            live = self.newest(live)
            with anyio.move_on_after(_FOLLOW_SECONDS):
                await live.settled.wait()
            if not live.settled.is_set() and not self.runs_here(live):
                await self._look_up(live)
        return live.reply()

    async def question(self, live: LiveTurn) -> str:
        """Return what the turn's user said, once it is heard."""
        async with self._database.reading() as db:
            key = (live.record.workspace_id, live.record.user_message_id)
            return (await db.get_one(Message, key)).content

    def runs_here(self, live: LiveTurn) -> bool:
        """Tell whether this server runs the turn; a queued one may become another's."""
        is_known = self._turns.get(live.record.id) is live
        return is_known and live.record.status is TurnStatus.IN_PROGRESS

    def newest(self, live: LiveTurn) -> LiveTurn:
        """Return what this server knows of a turn that it may have taken over since."""
        return self._turns.get(live.record.id, live)

    async def find(self, caller: Caller, turn_id: UUID) -> LiveTurn:
        """Return a turn, whoever runs or ran it. Raises `TurnNotFound`."""
        live = self._turns.get(turn_id)
        if live and live.record.workspace_id == caller.workspace_id:
            return live
        async with self._database.connection() as connection:
            return LiveTurn(await leases.find(connection, caller.workspace_id, turn_id))

    async def cancel(self, caller: Caller, turn_id: UUID) -> None:
        """End a turn, wherever it runs, and wait until it has ended; its text so far is kept.

        A settled turn stays as it is. Raises `TurnNotFound`.
        """
        live = await self.find(caller, turn_id)
        if live.record.status is TurnStatus.QUEUED:
            await self._settle(live, live.cancelled())
        elif self.runs_here(live):
            live.scope.cancel()
            await live.settled.wait()
        elif live.record.status is TurnStatus.IN_PROGRESS:
            async with self._database.connection() as connection:
                await acceptance.request_cancel(connection, caller.workspace_id, turn_id)
            while not live.settled.is_set():
                await anyio.sleep(_FOLLOW_SECONDS)
                await self._look_up(live)

    async def _accept(
        self, message: NewMessage, voice: VoiceStages | None, options: TurnOptions
    ) -> LiveTurn:
        async with self._database.connection() as connection:
            accepted = await acceptance.accept(connection, message, options, self._owner_id)
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

    def _spawn(self, live: LiveTurn) -> None:
        if self._tasks is None:
            raise RuntimeError("the engine is not running")
        live.begin()
        self._tasks.start_soon(self._run, live)

    async def _run(self, live: LiveTurn) -> None:
        try:
            outcome = await answer(live, self._chat_model, self._database)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(3, shield=True):
                await self._give_up(live)
            raise
        live.mark("total_ms")
        await self._settle(live, outcome)

    async def _settle(self, live: LiveTurn, outcome: Outcome) -> None:
        """Store how the turn ended, say so, and run the session's next turn.

        A database that is away is waited for: nobody is told of an end that is not stored.
        """
        following: TurnRecord | None = None
        give_up_at = time.monotonic() + _SETTLE_PATIENCE_SECONDS
        pause_seconds = 0.05
        with anyio.CancelScope(shield=True):
            while True:
                try:
                    following = await self._store_end(live, outcome)
                    break
                except StorageUnavailable as error:
                    if self.is_draining:
                        give_up_at = min(give_up_at, time.monotonic() + 3)
                    if time.monotonic() + pause_seconds > give_up_at:
                        outcome = replace(outcome, error=error)
                        break
                    await anyio.sleep(pause_seconds)
                    pause_seconds = min(pause_seconds * 2, 1.0)
                except TurnLost as error:
                    outcome = replace(outcome, error=error)
                    break
                except Exception:  # the turn is stored by whoever takes it over
                    logger.exception("turn %s could not be settled", live.record.id)
                    outcome = replace(
                        outcome, error=InternalError("The server failed to store the answer.")
                    )
                    break
            self._end(live, outcome)
            if following:
                self._take_over(following)

    async def _store_end(self, live: LiveTurn, outcome: Outcome) -> TurnRecord | None:
        async with live.storing:
            live.announce()
            last = live.terminal_event(outcome)
            async with self._database.connection() as connection:
                following = await settlement.settle(
                    connection,
                    live.record,
                    outcome,
                    live.progress,
                    [*live.log.unstored(), last],
                    self._owner_id,
                )
            live.log.append(last)
            return following

    def _take_over(self, record: TurnRecord) -> None:
        """Run a turn that was queued, here or elsewhere."""
        live = self._turns.setdefault(record.id, LiveTurn(record))
        live.record = record
        self._spawn(live)

    def _end(self, live: LiveTurn, outcome: Outcome) -> None:
        if self._turns.get(live.record.id) is live:
            del self._turns[live.record.id]
        live.end(outcome)
        if self.is_draining and not self._turns:
            self._emptied.set()

    async def _give_up(self, live: LiveTurn) -> None:
        """Leave a turn that shutdown cut off to another server, or to the next start."""
        try:
            async with live.storing, self._database.connection() as connection:
                await settlement.checkpoint(connection, live.record, live.log.unstored())
                await leases.release(connection, live.record)
        except (StorageUnavailable, TurnLost):
            logger.warning("turn %s could not be released; its lease will run out", live.record.id)
        finally:
            self._end(live, live.failed(_shutting_down()))

    async def _look_up(self, live: LiveTurn) -> None:
        """See whether another server, or an earlier request, has settled the turn."""
        async with self._database.reading() as db:
            turn, message = await crud.get_turn(db, live.record.workspace_id, live.record.id)
        if turn.ended_at is None or live.settled.is_set():
            return
        live.progress.usage = Usage(turn.prompt_tokens, turn.cached_tokens, turn.completion_tokens)
        live.progress.timings = turn.timings or {}
        error = error_of_code(turn.error_code, turn.error_detail or "") if turn.error_code else None
        self._end(live, Outcome(turn.status, message.status, message.content, error))

    async def _cut_off_when_draining(self, tasks: TaskGroup) -> None:
        await self._draining.wait()
        await self._drain_and_cut_off(tasks)

    async def _drain_and_cut_off(self, tasks: TaskGroup) -> None:
        self.drain()
        with anyio.move_on_after(_DRAIN_SECONDS):
            if self._turns:
                await self._emptied.wait()
        tasks.cancel_scope.cancel()
        for live in list(self._turns.values()):
            if live.record.status is TurnStatus.QUEUED:  # stays queued for whoever comes next
                self._end(live, live.failed(_shutting_down()))

    async def _recover(self, record: TurnRecord, recoveries: int) -> None:
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


def _shutting_down() -> TurnInterrupted:
    return TurnInterrupted(
        "The server is shutting down; the turn goes on when it is back.", retry_after_seconds=1
    )
