"""Watch turns of other servers: one query polls all turns with subscribers here."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from uuid import UUID

import anyio
from sqlalchemy import func, select, tuple_

from app.core.database import Database, StorageUnavailable
from app.models import TurnStatus
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.storage.tables import audio_clips, turn_events, turns

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.15
_TURNS_PER_QUERY = 500

_TurnState = tuple[TurnStatus, int | None, int | None]
"""Status, number of the last stored event, and index of the last stored audio piece."""


class RemoteTurnWatcher:
    """Polls the database and wakes the subscribers of turns that have changed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[tuple[UUID, UUID], list[LiveTurn]] = {}
        self._last_states: dict[tuple[UUID, UUID], _TurnState] = {}
        self._has_watchers = anyio.Event()

    @property
    def watched_count(self) -> int:
        """How many turns somebody waits for here."""
        return len(self._watched)

    @contextmanager
    def watch(self, live: LiveTurn) -> Generator[None]:
        """Wake `live.log` at the first poll and at every change while the block runs."""
        key = (live.record.workspace_id, live.record.id)
        self._watched.setdefault(key, []).append(live)
        self._last_states.pop(key, None)
        self._has_watchers.set()
        try:
            yield
        finally:
            self._watched[key].remove(live)
            if not self._watched[key]:
                del self._watched[key]
                self._last_states.pop(key, None)

    async def run(self) -> None:
        """Poll every 0.15 s while turns are watched."""
        while True:
            if not self._watched:
                self._has_watchers = anyio.Event()
                await self._has_watchers.wait()
            await anyio.sleep(_POLL_SECONDS)
            keys = list(self._watched)
            try:
                for start in range(0, len(keys), _TURNS_PER_QUERY):
                    await self._poll(keys[start : start + _TURNS_PER_QUERY])
            except StorageUnavailable:
                logger.debug(
                    "the database cannot be reached; turns on other servers are polled again"
                )
            except Exception:
                logger.exception("turns elsewhere could not be looked up")

    async def _poll(self, keys: Sequence[tuple[UUID, UUID]]) -> None:
        last_number = (
            select(func.max(turn_events.c.last_number))
            .where(turn_events.c.workspace_id == turns.c.workspace_id)
            .where(turn_events.c.turn_id == turns.c.id)
            .scalar_subquery()
        )
        last_index = (
            select(func.max(audio_clips.c.index))
            .where(audio_clips.c.workspace_id == turns.c.workspace_id)
            .where(audio_clips.c.turn_id == turns.c.id)
            .scalar_subquery()
        )
        query = select(
            turns.c.workspace_id, turns.c.id, turns.c.status, last_number, last_index
        ).where(tuple_(turns.c.workspace_id, turns.c.id).in_(keys))
        states: dict[tuple[UUID, UUID], _TurnState] = {}
        async with self._database.reading() as db:
            for workspace_id, turn_id, status, number, index in await db.execute(query):
                states[workspace_id, turn_id] = (status, number, index)
        for key in keys:
            state = states.get(key)  # None if the turn was deleted: wake its subscribers as well
            if state is not None and self._last_states.get(key) == state:
                continue
            if state is not None:
                self._last_states[key] = state
            for live in self._watched.get(key, ()):
                live.log.wake()
