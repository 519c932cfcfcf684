"""Learn the outcomes of turns that other servers settle, or that were deleted."""

import logging
from collections.abc import Callable

from app.core.database import Database, StorageUnavailable
from app.core.database.retries import retry_while_unavailable
from app.services import crud
from app.services.turns.errors import TurnStateUnknown, turn_lost
from app.services.turns.execution.finalization import read_outcome
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.execution.remote_turns import RemoteTurnWatcher
from app.services.turns.records import Outcome

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 60
"""How long the database may be away while somebody waits for a turn."""


class RemoteOutcomes:
    """Loads outcomes from the database, and ends the turns in this process with them."""

    def __init__(
        self,
        database: Database,
        watcher: RemoteTurnWatcher,
        runs_here: Callable[[LiveTurn], bool],
        end: Callable[[LiveTurn, Outcome], None],
    ) -> None:
        self._database = database
        self._watcher = watcher
        self._runs_here = runs_here
        self._end = end

    async def refresh(self, live: LiveTurn) -> None:
        """End `live` if it is settled and this server does not run it. Raises `TurnNotFound`."""
        if self._runs_here(live):
            return
        outcome = await read_outcome(self._database, live)
        if outcome and not live.settled.is_set():
            self._end(live, outcome)

    async def leave(self, live: LiveTurn) -> None:
        """End a turn that was settled elsewhere or deleted, also if it runs here."""
        try:
            outcome = await read_outcome(self._database, live)
        except crud.TurnNotFound:
            outcome = live.failed_outcome(turn_lost())
        if outcome:
            self._end(live, outcome)

    async def publish(self, live: LiveTurn, lost: Outcome) -> None:
        """End a turn that another server took over as it ends there; with `lost` if unknown."""
        try:
            await self.wait(live)
        except (crud.TurnNotFound, TurnStateUnknown) as error:
            logger.debug("stopped waiting for turn %s: %s", live.record.id, error)
        finally:
            self._end(live, lost)

    async def wait(self, live: LiveTurn) -> None:
        """Wait until a turn is settled that is queued, or that another server runs.

        Raises `TurnNotFound` if it is deleted, and `TurnStateUnknown` if the database is away.
        """
        with self._watcher.watch(live):
            while not live.settled.is_set():
                changed = live.log.changed
                if self._runs_here(live):  # it was promoted from the queue
                    await live.settled.wait()
                    return
                try:
                    await retry_while_unavailable(lambda: self.refresh(live), _RETRY_SECONDS)
                except StorageUnavailable:
                    raise TurnStateUnknown from None
                if not live.settled.is_set():
                    await changed.wait()
