"""Who is told of the turns that end in this process."""

from typing import Protocol

from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.records import Outcome


class TurnObserver(Protocol):
    """Is told of turns; never raises and never waits."""

    def turn_ended(self, live: LiveTurn, outcome: Outcome) -> None:
        """Take note of a turn whose end is stored, or that another server finishes."""
        ...

    def turn_released(self, live: LiveTurn) -> None:
        """Take note of a turn that shutdown cut off, to be run again by another server."""
        ...


class SilentTurnObserver:
    """Fulfils `TurnObserver` and does nothing."""

    def turn_ended(self, live: LiveTurn, outcome: Outcome) -> None:
        """Do nothing."""

    def turn_released(self, live: LiveTurn) -> None:
        """Do nothing."""
