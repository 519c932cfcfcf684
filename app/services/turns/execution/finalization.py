"""Store and read the outcomes of turns, with retries while the database is unavailable."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import anyio

from app.core.database import CommitOutcomeUnknown, Database, StorageUnavailable
from app.core.database.retries import retry_while_unavailable
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.logging import describe_cause, log_fields
from app.core.security import Caller
from app.models import Message, TurnStatus, utc_now
from app.services import crud
from app.services.turns.errors import (
    InternalError,
    OutputInvalid,
    TurnLost,
    TurnStateUnknown,
    error_of_code,
)
from app.services.turns.events import TurnEvent
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.typed_answers import restore_faults
from app.services.turns.parts import decode_parts
from app.services.turns.records import Outcome, TurnRecord, Usage
from app.services.turns.storage import event_store, settlement, unstored
from app.services.turns.storage.audio_store import AudioStore
from app.services.turns.storage.deleted_turns import bill_deleted_turn
from app.services.turns.storage.turn_rows import lock_session
from app.services.usage import StorageMeter
from app.services.usage.pricing import usd

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 60
_RETRY_WHILE_DRAINING_SECONDS = 3
_FIRST_PAUSE_SECONDS = 0.05
_RELEASE_TIMEOUT_SECONDS = 3


async def read_outcome(database: Database, live: LiveTurn) -> Outcome | None:
    """Load the outcome of a turn from the database; `None` while it is not settled.

    Sets usage and timings in `live.progress`. Raises `TurnNotFound`, also of an unstored turn.
    """
    async with database.reading() as db:
        server = Caller(live.record.workspace_id)
        turn, message = await crud.get_turn(db, server, live.record.id)
    if turn.ended_at is None and turn.status is not TurnStatus.REQUIRES_ACTION:
        return None
    live.progress.usage = Usage(
        turn.prompt_tokens,
        turn.cached_tokens,
        turn.completion_tokens,
        usd(turn.cost_nanos),
        bool(turn.usage_estimated),
    )
    live.progress.timings = turn.timings or {}
    live.progress.ended_at = message.created_at
    error = error_of_code(turn.error_code, turn.error_detail or "") if turn.error_code else None
    if isinstance(error, OutputInvalid):
        restore_faults(live.record, error, message.content, turn.finish_reason)
    parts = decode_parts(message.parts) if message.parts else None
    return Outcome(
        turn.status,
        message.status,
        message.content,
        error,
        parts,
        heard_content=message.heard_content,
        output=message.output,
    )


async def read_transcript(database: Database, record: TurnRecord) -> str:
    """Return the text of a turn's user message. Raises `TurnStateUnknown`."""
    key = (record.workspace_id, record.user_message_id)
    try:
        async with database.reading() as db:
            return (await db.get_one(Message, key)).content
    except StorageUnavailable:
        raise TurnStateUnknown from None


class TurnFinalizer:
    """Stores the outcomes of the turns of one engine."""

    def __init__(
        self,
        database: Database,
        audio: AudioStore,
        owner_id: UUID,
        draining: anyio.Event,
        storage: StorageMeter | None = None,
    ) -> None:
        self._database = database
        self._audio = audio
        self._owner_id = owner_id
        self._draining = draining
        self._storage = storage

    async def store(self, live: LiveTurn, outcome: Outcome) -> tuple[Outcome, TurnRecord | None]:
        """Store the outcome; return it, with the error of storing it if any, and the next turn.

        Retries for up to 60 s while the database is unavailable, because the outcome is published
        only after it is stored. A try whose COMMIT had no answer is looked up by the next one.
        The caller shields this from cancellation.
        """
        record, ended_at = live.record, live.progress.ended_at or utc_now()
        give_up_at = time.monotonic() + _RETRY_SECONDS
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            if live.played_ms is not None:
                outcome = replace(outcome, heard_content=live.heard_content(outcome.content))
            try:
                return outcome, await self._store(live, record, outcome, ended_at)
            except StorageUnavailable as error:
                live.has_unknown_commit |= isinstance(error, CommitOutcomeUnknown)
                if pause_seconds == _FIRST_PAUSE_SECONDS:
                    logger.warning(
                        "the end of a turn waits for the database",
                        extra=log_fields(
                            turn_id=str(live.record.id),
                            code=error.code,
                            cause=describe_cause(error),
                        ),
                    )
                if self._draining.is_set():
                    soon = time.monotonic() + _RETRY_WHILE_DRAINING_SECONDS
                    give_up_at = min(give_up_at, soon)
                if time.monotonic() + pause_seconds > give_up_at:
                    return replace(outcome, error=TurnStateUnknown()), None
                await anyio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 1.0)
            except TurnLost as error:
                await self._bill_if_deleted(live)
                return replace(outcome, error=error), None
            except Exception:  # the server that takes the turn over stores an outcome
                logger.exception(
                    "turn could not be settled", extra=log_fields(turn_id=str(live.record.id))
                )
                error = InternalError("The server failed to store the answer.")
                return replace(outcome, error=error), None

    async def release(self, live: LiveTurn) -> None:
        """Release a turn that shutdown interrupted, for another server or the next start."""
        try:
            with anyio.fail_after(_RELEASE_TIMEOUT_SECONDS):
                async with live.store_lock:
                    await self._database.run(
                        settlement.release_turn,
                        live.record,
                        live.log.unstored_events(),
                        may_be_stored=live.has_unknown_commit,
                    )
        except (StorageUnavailable, TurnLost, TimeoutError):
            logger.warning("turn could not be released; its lease will run out")

    async def _bill_if_deleted(self, live: LiveTurn) -> None:
        """Store what a turn used whose session was deleted while it ran."""

        async def bill() -> None:
            await self._database.run(bill_deleted_turn, live.record, live.progress)

        try:
            await retry_while_unavailable(bill, _RETRY_SECONDS)
        except Exception:
            logger.exception("the usage of deleted turn %s could not be stored", live.record.id)

    async def _store(
        self, live: LiveTurn, record: TurnRecord, outcome: Outcome, ended_at: datetime
    ) -> TurnRecord | None:
        async with live.store_lock:
            live.emit_acceptance()
            last = live.terminal_event(outcome)
            events = [*live.log.unstored_events(), last]
            next_record = await self._database.run_batched(
                (str(record.session_id),),
                lambda: self._settlement_script(live, record, outcome, events, ended_at),
            )
            live.log.append(last)
            if self._storage:
                self._storage.add(record.workspace_id, live.stored_bytes(outcome))
            return next_record

    def _settlement_script(
        self,
        live: LiveTurn,
        record: TurnRecord,
        outcome: Outcome,
        events: Sequence[TurnEvent],
        ended_at: datetime,
    ) -> TransactionScript[TurnRecord | None]:
        if not record.keeps_content:
            may_be_stored = live.has_unknown_commit
            yield from unstored.settle(
                record, outcome, live.progress, ended_at, may_be_stored=may_be_stored
            )
            return None
        if outcome.status is TurnStatus.REQUIRES_ACTION:
            return (yield from self._suspension_script(live, record, outcome, events))
        if live.has_unknown_commit:
            earlier = yield from settlement.find_earlier_settlement(
                record, ended_at, self._owner_id
            )
            if earlier.is_settled:
                return earlier.following
            events = [event for event in events if event.number > earlier.last_number]
        if record.has_sound:
            yield from self._audio.settle(
                record, live.voice, outcome.heard_content, live.stored_pieces
            )
        return (
            yield from settlement.settle(
                record, outcome, live.progress, events, self._owner_id, ended_at
            )
        )

    def _suspension_script(
        self, live: LiveTurn, record: TurnRecord, outcome: Outcome, events: Sequence[TurnEvent]
    ) -> TransactionScript[TurnRecord | None]:
        if live.has_unknown_commit:
            yield from lock_session(record, utc_now())  # waits for the lost transaction
            ((last_number,),) = yield from fetch_one(event_store.last_number_stmt(record))
            events = [event for event in events if event.number > (last_number or 0)]
        return (
            yield from settlement.suspend(record, outcome, live.progress, events, self._owner_id)
        )
