"""The end of a turn on its way to the database, which may be away, and back."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import anyio

from app.core.database import Database, StorageUnavailable
from app.core.direct import Program
from app.core.security import Caller
from app.models import Modality
from app.services import crud
from app.services.turns import settlement
from app.services.turns.audio_store import AudioStore
from app.services.turns.errors import InternalError, TurnLost, error_of_code
from app.services.turns.events import TurnEvent
from app.services.turns.live import LiveTurn
from app.services.turns.records import Outcome, TurnRecord, Usage
from app.services.usage.tariff import usd

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 60
_PATIENCE_WHILE_DRAINING_SECONDS = 3
_FIRST_PAUSE_SECONDS = 0.05
_GIVE_UP_SECONDS = 3


async def read_end(database: Database, live: LiveTurn) -> Outcome | None:
    """Return how a turn ended that another server, or an earlier request, has settled.

    What it used is noted in `live`. Raises `TurnNotFound`.
    """
    async with database.reading() as db:
        server = Caller(live.record.workspace_id)
        turn, message = await crud.get_turn(db, server, live.record.id)
    if turn.ended_at is None:
        return None
    live.progress.usage = Usage(
        turn.prompt_tokens,
        turn.cached_tokens,
        turn.completion_tokens,
        usd(turn.cost_nanos),
        bool(turn.usage_estimated),
    )
    live.progress.timings = turn.timings or {}
    error = error_of_code(turn.error_code, turn.error_detail or "") if turn.error_code else None
    return Outcome(turn.status, message.status, message.content, error)


class Ending:
    """Stores how the turns of one engine end."""

    def __init__(
        self, database: Database, audio: AudioStore, owner_id: UUID, draining: anyio.Event
    ) -> None:
        self._database = database
        self._audio = audio
        self._owner_id = owner_id
        self._draining = draining

    async def store(self, live: LiveTurn, outcome: Outcome) -> tuple[Outcome, TurnRecord | None]:
        """Store the end, and return what became of it and the session's next turn.

        A database that is away is waited for: nobody is told of an end that is not stored. The
        caller shields this from cancellation.
        """
        give_up_at = time.monotonic() + _PATIENCE_SECONDS
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return outcome, await self._store(live, outcome)
            except StorageUnavailable as error:
                if self._draining.is_set():
                    soon = time.monotonic() + _PATIENCE_WHILE_DRAINING_SECONDS
                    give_up_at = min(give_up_at, soon)
                if time.monotonic() + pause_seconds > give_up_at:
                    return replace(outcome, error=error), None
                await anyio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 1.0)
            except TurnLost as error:
                return replace(outcome, error=error), None
            except Exception:  # the turn is stored by whoever takes it over
                logger.exception("turn %s could not be settled", live.record.id)
                error = InternalError("The server failed to store the answer.")
                return replace(outcome, error=error), None

    async def give_up(self, live: LiveTurn) -> None:
        """Leave a turn that shutdown cut off to another server, or to the next start."""
        try:
            with anyio.fail_after(_GIVE_UP_SECONDS):
                async with live.storing:
                    await self._database.run(settlement.give_up, live.record, live.log.unstored())
        except (StorageUnavailable, TurnLost, TimeoutError):
            logger.warning("turn %s could not be released; its lease will run out", live.record.id)

    async def _store(self, live: LiveTurn, outcome: Outcome) -> TurnRecord | None:
        async with live.storing:
            live.announce()
            last = live.terminal_event(outcome)
            record, played_ms, events = live.record, live.played_ms, [*live.log.unstored(), last]
            following = await self._database.run_with(
                (str(record.session_id),),
                lambda: self._settling(live, record, outcome, events, played_ms),
            )
            live.log.append(last)
            return following

    def _settling(
        self,
        live: LiveTurn,
        record: TurnRecord,
        outcome: Outcome,
        events: Sequence[TurnEvent],
        played_ms: int | None,
    ) -> Program[TurnRecord | None]:
        if record.modality is Modality.VOICE:
            yield from self._audio.settle(
                record, live.voice, outcome.content, played_ms, live.stored_pieces
            )
        return (
            yield from settlement.settle(record, outcome, live.progress, events, self._owner_id)
        )
