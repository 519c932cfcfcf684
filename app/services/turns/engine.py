"""The turn engine: every way in becomes `start`, every way out follows what it returns.

A turn runs in a task of the server, not of the request: the client may leave. Three steps, each
a short transaction or none: accept, run (nothing is open while a provider thinks), settle.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from uuid import UUID

import anyio
from anyio.abc import TaskGroup  # a line more than it saves

from app.core.database import Database, StorageUnavailable
from app.core.errors import AppError
from app.core.security import Caller
from app.models import Modality, TurnStatus, new_id
from app.services import crud
from app.services.ports import ChatModel, ChatRequest, TextDelta, UpstreamIncomplete
from app.services.turns import leases, store
from app.services.turns.errors import (
    InternalError,
    ServerBusy,
    ServerDraining,
    TurnInterrupted,
    TurnLost,
    TurnTimeout,
    error_of_code,
)
from app.services.turns.live import LiveTurn, VoiceStages
from app.services.turns.prompt import build_prompt
from app.services.turns.records import Outcome, Reply, TurnRecord, Usage
from app.services.turns.statements import LEASE_SECONDS

logger = logging.getLogger(__name__)

LIVE_TURNS_LIMIT = 2000
_DEADLINE_SECONDS = {Modality.TEXT: 120, Modality.VOICE: 300}
_SETTLE_PATIENCE_SECONDS = 60
_DRAIN_SECONDS = 22
"""Leaves time to settle or give up what is cut off, within the 30 s of a shutdown."""
_LEASES_SECONDS = LEASE_SECONDS / 3
_FOLLOW_SECONDS = 0.2
"""How often a queued turn is looked up, for another server may run it."""
_RECOVERIES_LIMIT = 1


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
        """Accept no more turns; those that were accepted have a while to end."""
        self._draining.set()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run turns inside the block; at its end finish those that are live, or give them up."""
        async with anyio.create_task_group() as background:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                background.start_soon(self._keep_leases)
                background.start_soon(self._cut_off_when_draining, tasks)
                try:
                    yield
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._drain_and_cut_off(tasks)
            background.cancel_scope.cancel()

    async def start(
        self, caller: Caller, session_id: UUID, content: str, voice: VoiceStages | None = None
    ) -> LiveTurn:
        """Accept a turn: when this returns it is stored, and will be settled whatever happens.

        A voice turn's `content` is empty. Raises `SessionNotFound`, `AgentArchived`,
        `SessionQueueFull`, `ServerBusy`, `ServerDraining` or `StorageUnavailable`.
        """
        if self.is_draining:
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        if len(self._turns) >= LIVE_TURNS_LIMIT:
            raise ServerBusy("This server is full; try again.", retry_after_seconds=1)
        with anyio.CancelScope(shield=True):  # stored and running, or neither
            return await self._accept(caller, session_id, content, voice)
        raise AssertionError("nobody cancels the scope")

    async def reply_to_text(self, caller: Caller, session_id: UUID, content: str) -> Reply:
        """Answer a message and return the answer; the turn goes on if the caller is cancelled.

        Raises what `start` raises, and the error that the turn ended with.
        """
        return await self.result(await self.start(caller, session_id, content))

    async def result(self, live: LiveTurn) -> Reply:
        """Wait until the turn is settled; return its answer, or raise the error it ended with."""
        while not live.settled.is_set():
            with anyio.move_on_after(_FOLLOW_SECONDS):
                await live.settled.wait()
            if live.record.status is TurnStatus.QUEUED:
                await self._look_up(live)
        return live.reply()

    async def cancel(self, caller: Caller, turn_id: UUID) -> None:
        """End a turn that is queued or runs here; what was answered so far is kept.

        A settled turn stays as it is. Raises `TurnNotFound`.
        """
        live = self._turns.get(turn_id)
        if live is None or live.record.workspace_id != caller.workspace_id:
            async with self._database.connection() as connection:
                live = LiveTurn(await leases.find(connection, caller.workspace_id, turn_id))
        if live.record.status is TurnStatus.QUEUED:
            await self._settle(live, live.cancelled())
        elif turn_id in self._turns:
            live.scope.cancel()
            await live.settled.wait()

    async def _accept(
        self, caller: Caller, session_id: UUID, content: str, voice: VoiceStages | None
    ) -> LiveTurn:
        async with self._database.connection() as connection:
            record = await store.accept(
                connection,
                workspace_id=caller.workspace_id,
                session_id=session_id,
                modality=Modality.VOICE if voice else Modality.TEXT,
                content=content,
                owner_id=self._owner_id,
            )
        live = LiveTurn(record, voice)
        self._turns[record.id] = live
        if record.status is TurnStatus.IN_PROGRESS:
            self._spawn(live)
        return live

    def _spawn(self, live: LiveTurn) -> None:
        if self._tasks is None:
            raise RuntimeError("the engine is not running")
        self._tasks.start_soon(self._run, live)

    async def _run(self, live: LiveTurn) -> None:
        try:
            outcome = await self._answer(live)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(3, shield=True):
                await self._give_up(live)
            raise
        live.mark("total_ms")
        await self._settle(live, outcome)

    async def _answer(self, live: LiveTurn) -> Outcome:
        """Run the turn to its end; nothing is raised but the server's own cancellation."""
        try:
            with live.scope, anyio.fail_after(_DEADLINE_SECONDS[live.record.modality]):
                if live.record.modality is Modality.VOICE:
                    return await self._answer_by_voice(live)
                await self._chat(live)
                return live.completed()
        except AppError as error:
            return live.failed(error)
        except TimeoutError:
            return live.failed(TurnTimeout("The turn was not finished in time."))
        except Exception:  # whatever it is, the turn must end
            logger.exception("turn %s failed", live.record.id)
            return live.failed(InternalError("The server failed to answer; its log says why."))
        return live.cancelled()

    async def _chat(self, live: LiveTurn, on_delta: Callable[[str], None] | None = None) -> None:
        """Ask the model; the answer grows in `live.progress`. Raises `ProviderError`."""
        record, progress, persona = live.record, live.progress, live.record.persona
        request = ChatRequest(
            messages=build_prompt(
                persona.system_prompt,
                record.history,
                context_tokens=self._chat_model.context_tokens,
                max_output_tokens=persona.max_output_tokens,
            ),
            model=persona.model,
            temperature=persona.temperature,
            max_output_tokens=persona.max_output_tokens,
        )
        async with aclosing(self._chat_model.stream(request)) as chunks:
            async for chunk in chunks:
                if isinstance(chunk, TextDelta):
                    if not progress.text:
                        live.mark("first_token_ms")
                    progress.text.append(chunk.text)
                    if on_delta:
                        on_delta(chunk.text)
                else:
                    progress.finish_reason = chunk.finish_reason.value
                    progress.model = chunk.model
                    progress.usage = Usage(
                        chunk.prompt_tokens, chunk.cached_tokens, chunk.completion_tokens
                    )
        if not progress.text:
            raise UpstreamIncomplete("The AI provider's answer was empty.")

    async def _answer_by_voice(self, live: LiveTurn) -> Outcome:
        voice, persona = live.voice, live.record.persona
        if voice is None:
            raise TurnInterrupted("The recording is not on this server any more; send it again.")
        transcript = await voice.hear(persona)
        live.mark("stt_ms")
        live.progress.speech_in_seconds = round(voice.recording_seconds, 2)
        async with self._database.connection() as connection:
            await store.hear(connection, live.record, transcript.text)
        live.record = _with_question(live.record, transcript.text)
        speech_error: AppError | None = None

        async def speak() -> None:
            nonlocal speech_error
            try:
                live.progress.speech_out_characters = await voice.speak(persona, receive)
            except AppError as error:  # the answer is written to its end all the same
                speech_error = error
            finally:
                receive.close()

        def say(delta: str) -> None:
            if not send.statistics().open_receive_streams:
                return
            send.send_nowait(delta)

        send, receive = anyio.create_memory_object_stream[str](float("inf"))
        chat_error: AppError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(speak)
            try:
                await self._chat(live, say)
            except AppError as error:
                chat_error = error
                group.cancel_scope.cancel()
            finally:
                send.close()
        if chat_error:
            raise chat_error
        return live.completed(speech_error)

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
                    async with self._database.connection() as connection:
                        following = await store.settle(
                            connection, live.record, outcome, live.progress, self._owner_id
                        )
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

    def _take_over(self, record: TurnRecord) -> None:
        """Run a turn that was queued, here or elsewhere, or whose owner is gone."""
        live = self._turns.setdefault(record.id, LiveTurn(record))
        live.record = record
        self._spawn(live)

    def _end(self, live: LiveTurn, outcome: Outcome) -> None:
        waiting = self._turns.pop(live.record.id, live)
        waiting.end(outcome)
        live.end(outcome)
        if self.is_draining and not self._turns:
            self._emptied.set()

    async def _give_up(self, live: LiveTurn) -> None:
        """Leave a turn that shutdown cut off to another server, or to the next start."""
        try:
            async with self._database.connection() as connection:
                await leases.release(connection, live.record)
        except StorageUnavailable:
            logger.warning("turn %s could not be released; its lease will run out", live.record.id)
        finally:
            self._end(live, live.failed(_shutting_down()))

    async def _look_up(self, live: LiveTurn) -> None:
        """See whether another server has settled a turn that waits here."""
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

    async def _keep_leases(self) -> None:
        """Say that this server lives, and take over the turns of those that do not."""
        alone = self._database.is_sqlite
        recovered = False
        while True:
            try:
                async with self._database.connection() as connection:
                    if self._turns and not alone:
                        await leases.renew_leases(connection, self._owner_id)
                    orphans = []
                    if not (alone and recovered) and not self.is_draining:
                        orphans = await leases.claim_orphans(
                            connection, self._owner_id, every=alone
                        )
                recovered = not orphans
                for record, recoveries in orphans:
                    await self._recover(record, recoveries)
            except StorageUnavailable:
                logger.warning("the database is away; leases are not renewed")
            except Exception:  # such as tables that are not there yet
                logger.exception("leases could not be kept")
            await anyio.sleep(_LEASES_SECONDS)

    async def _recover(self, record: TurnRecord, recoveries: int) -> None:
        if recoveries <= _RECOVERIES_LIMIT:
            logger.info("turn %s is run again: the server that ran it stopped", record.id)
            self._take_over(record)
        else:
            live = LiveTurn(record)
            error = TurnInterrupted("The server stopped twice during this turn; send it again.")
            await self._settle(live, live.failed(error))


def _shutting_down() -> TurnInterrupted:
    return TurnInterrupted(
        "The server is shutting down; the turn goes on when it is back.", retry_after_seconds=1
    )


def _with_question(record: TurnRecord, words: str) -> TurnRecord:
    question = replace(record.history[-1], content=words)
    return replace(record, history=(*record.history[:-1], question))
