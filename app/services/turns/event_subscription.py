"""Subscribe to a turn's events: from memory on the server that runs it, else from the database."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack

from app.core.database import Database, StorageUnavailable
from app.core.database.retries import retry_while_unavailable
from app.core.security import Caller
from app.models import Turn, TurnStatus
from app.services import crud
from app.services.turns.engine import TurnEngine
from app.services.turns.errors import EventsPruned, ServerDraining, TurnStateUnknown
from app.services.turns.events import EventValue, TurnEvent
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.storage import event_store

_HEARTBEAT_SECONDS = 15.0
_RETRY_SECONDS = 10
"""How long the database may be away before a stream breaks off; less than a heartbeat."""
_SETTLED = {TurnStatus.COMPLETED, TurnStatus.FAILED, TurnStatus.CANCELLED}
_WAITING = {TurnStatus.REQUIRES_ACTION, None}
"""With events of the status `None`, which come from memory: the server that ran the turn let go."""


async def subscribe(
    engine: TurnEngine,
    database: Database,
    live: LiveTurn,
    after: int,
    silence_seconds: float = _HEARTBEAT_SECONDS,
) -> AsyncGenerator[Sequence[TurnEvent]]:
    """Yield the events with a number above `after` as they occur, the terminal event last.

    A turn that waits for actions ends the stream with `turn.requires_action`. One that has gone on
    since passes over it, also where nothing of what follows is stored yet.

    Yields an empty list after each `silence_seconds` in which nothing happened. Raises
    `ServerDraining` when this server shuts down: at once for a turn that runs elsewhere, and
    otherwise when the time for turns to end is over. Raises `EventsPruned` where a settled turn's
    events are gone.
    """
    watched_turn: LiveTurn | None = None
    last: TurnEvent | None = None
    with ExitStack() as stack:
        while True:
            live = engine.current(live)
            changed = live.log.changed
            status: TurnStatus | None = None
            if (
                after < live.record.events_after
            ):  # stored by another server; the log has only later events
                status, events = await _read_stored(database, live, after)
            else:
                events = live.log.after(after)
            if not events and not engine.runs_here(live):
                if watched_turn is not live:
                    stack.enter_context(engine.watching(live))
                    watched_turn = live
                status, events = await _read_stored(database, live, after)
            if events:
                after, last = events[-1].number, events[-1]
                yield events
            if last and _is_last(engine, live, last, status):
                return
            if events:
                continue
            if engine.is_draining and not engine.holds(live):
                raise ServerDraining("This server is shutting down.", retry_after_seconds=1)
            try:
                async with asyncio.timeout(silence_seconds):  # costs half as much as anyio's scope
                    await changed.wait()
            except TimeoutError:
                yield ()


def _is_last(
    engine: TurnEngine, live: LiveTurn, event: TurnEvent, status: TurnStatus | None
) -> bool:
    """Tell whether an event ends its stream: a turn whose action was taken has later ones.

    They may not be stored yet, or be stored since the event was read with `status`.
    """
    if event.is_terminal:
        return True
    runs_here = engine.runs_here(engine.current(live))
    return event.ends_stream and not runs_here and status in _WAITING


async def follow_here(
    live: LiveTurn, silence_seconds: float
) -> AsyncGenerator[Sequence[EventValue]]:
    """Yield the events of a turn that runs in this process, up to its end; nothing is read.

    Yields an empty list after each `silence_seconds` without an event. The terminal event is
    missing where the outcome could not be stored: `live.outcome.error` says why.
    """
    after = 0
    while True:
        changed = live.log.changed
        events = live.log.after(after)
        if events:
            after = events[-1].number
            yield [event.value for event in events]
            if events[-1].is_terminal:
                return
        elif live.settled.is_set():
            return
        else:
            try:
                async with asyncio.timeout(silence_seconds):
                    await changed.wait()
            except TimeoutError:
                yield ()


async def is_complete(engine: TurnEngine, database: Database, live: LiveTurn, after: int) -> bool:
    """Tell whether the turn has ended and has no event above `after`.

    Raises `EventsPruned` where it has ended and its events are deleted.
    """
    if engine.holds(live):
        return False
    record = live.record
    async with database.reading() as db:
        turn, _ = await crud.get_turn(db, Caller(record.workspace_id), record.id)
        if turn.status not in _SETTLED:
            return False
        last_number = await event_store.last_number(db, record.workspace_id, record.id)
    if last_number is None:
        raise _pruned()
    return last_number <= after


def _pruned() -> EventsPruned:
    return EventsPruned(
        "The turn has ended and its events are deleted: `GET /turns/{id}` has its answer."
    )


async def _read_stored(
    database: Database, live: LiveTurn, after: int
) -> tuple[TurnStatus, Sequence[TurnEvent]]:
    """Return the turn's status and its stored events above `after`, which are no older."""
    record = live.record

    async def read() -> tuple[Turn, Sequence[TurnEvent]]:
        async with database.reading() as db:
            turn, _ = await crud.get_turn(db, Caller(record.workspace_id), record.id)
            return turn, await event_store.read(db, record.workspace_id, record.id, after)

    try:
        turn, events = await retry_while_unavailable(read, _RETRY_SECONDS)
    except StorageUnavailable:
        raise TurnStateUnknown from None
    if not events and turn.status in _SETTLED:
        raise _pruned()
    return turn.status, events
