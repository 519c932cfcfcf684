"""Following a turn's events: live where it runs, from the database otherwise."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack

from app.core.database import Database
from app.core.security import Caller
from app.models import TurnStatus
from app.services import crud
from app.services.turns import event_store
from app.services.turns.engine import TurnEngine
from app.services.turns.errors import EventsPruned, ServerDraining
from app.services.turns.events import TurnEvent
from app.services.turns.live import LiveTurn

_HEARTBEAT_SECONDS = 15.0
_SETTLED = {TurnStatus.COMPLETED, TurnStatus.FAILED, TurnStatus.CANCELLED}


async def follow(
    engine: TurnEngine, database: Database, live: LiveTurn, after: int
) -> AsyncGenerator[Sequence[TurnEvent]]:
    """Yield the events above `after` as they come, the terminal one last.

    Yields an empty list every 15 s in which nothing happened. Raises `ServerDraining` when this
    server shuts down first, and `EventsPruned` where a settled turn's events are gone.
    """
    watched: LiveTurn | None = None
    with ExitStack() as stack:
        while True:
            live = engine.newest(live)
            changed = live.log.changed
            if after < live.record.events_after:  # another server stored them; the log has the rest
                events = await _read(database, live, after)
            else:
                events = live.log.after(after)
            if not events and not engine.runs_here(live):
                if watched is not live:
                    stack.enter_context(engine.watching(live))
                    watched = live
                events = await _read(database, live, after)
            if events:
                after = events[-1].number
                yield events
                if events[-1].is_terminal:
                    return
                continue
            if engine.is_draining:
                raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
            try:
                async with asyncio.timeout(_HEARTBEAT_SECONDS):  # half of what a scope costs
                    await changed.wait()
            except TimeoutError:
                yield ()


async def _read(database: Database, live: LiveTurn, after: int) -> Sequence[TurnEvent]:
    record = live.record
    async with database.reading() as db:
        turn, _ = await crud.get_turn(db, Caller(record.workspace_id), record.id)
        events = await event_store.read(db, record.workspace_id, record.id, after)
    if not events and turn.status in _SETTLED:
        raise EventsPruned("The turn is settled: `GET /turns/{id}` has its answer.")
    return events
