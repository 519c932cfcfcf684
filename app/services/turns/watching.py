"""Turns that run elsewhere: one question for all that somebody waits for here."""

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from uuid import UUID

import anyio
from sqlalchemy import func, select, tuple_

from app.core.database import Database, StorageUnavailable
from app.models import TurnStatus
from app.services.turns.live import LiveTurn
from app.services.turns.statements import audio_clips, turn_events, turns

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.15
_ASKED_AT_ONCE = 500

_Seen = tuple[TurnStatus, int | None, int | None]
"""Status, the number of the last stored event, and the index of the last stored piece of sound."""


class Watch:
    """Wakes the followers of turns in the database when something about them is stored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[tuple[UUID, UUID], list[LiveTurn]] = {}
        self._seen: dict[tuple[UUID, UUID], _Seen] = {}
        self._wanted = anyio.Event()

    @contextmanager
    def on(self, live: LiveTurn) -> Generator[None]:
        """Wake `live.log` at every change, and once soon, while the block runs."""
        key = (live.record.workspace_id, live.record.id)
        self._watched.setdefault(key, []).append(live)
        self._seen.pop(key, None)
        self._wanted.set()
        try:
            yield
        finally:
            self._watched[key].remove(live)
            if not self._watched[key]:
                del self._watched[key]
                self._seen.pop(key, None)

    async def run(self) -> None:
        """Look again and again, while there is something to look for."""
        while True:
            if not self._watched:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            await anyio.sleep(_POLL_SECONDS)
            keys = list(self._watched)
            try:
                for start in range(0, len(keys), _ASKED_AT_ONCE):
                    await self._look(keys[start : start + _ASKED_AT_ONCE])
            except StorageUnavailable:
                logger.debug("the database is away")
            except Exception:
                logger.exception("turns elsewhere could not be looked up")

    async def _look(self, keys: Sequence[tuple[UUID, UUID]]) -> None:
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
        found: dict[tuple[UUID, UUID], _Seen] = {}
        async with self._database.reading() as db:
            for workspace_id, turn_id, status, number, index in await db.execute(query):
                found[workspace_id, turn_id] = (status, number, index)
        for key in keys:
            seen = found.get(key)  # none where it was deleted, which its followers must see
            if seen is not None and self._seen.get(key) == seen:
                continue
            if seen is not None:
                self._seen[key] = seen
            for live in self._watched.get(key, ()):
                live.log.wake()
