"""The clock of an answer's sound: how much of it the client has played, as far as we know."""

import time
from collections.abc import Callable

AHEAD_SECONDS = 4.0
"""How far ahead of its playing sound is handed over. Without a limit, a minute would be spoken and
paid for before anyone could interrupt it."""


class Playback:
    """Assumes that the client plays what it is sent at once, and without a break."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sent_seconds = 0.0
        self._plays_until = 0.0

    @property
    def sent_ms(self) -> int:
        """How much was sent."""
        return round(self._sent_seconds * 1000)

    @property
    def played_ms(self) -> int:
        """How much has been played."""
        return max(0, self.sent_ms - round(self.ahead_seconds * 1000))

    @property
    def ahead_seconds(self) -> float:
        """How much was sent and is not played yet."""
        return max(0.0, self._plays_until - self._clock())

    @property
    def is_playing(self) -> bool:
        """True while the client has something left to play."""
        return self.ahead_seconds > 0

    def send(self, seconds: float) -> None:
        """Take note that so much was sent."""
        self._plays_until = max(self._plays_until, self._clock()) + seconds
        self._sent_seconds += seconds

    def take_back(self, seconds: float) -> None:
        """Take note that the last of what was to be sent was not."""
        self._plays_until -= seconds
        self._sent_seconds -= seconds

    def stop(self) -> None:
        """Take note that the client plays no more."""
        self._plays_until = 0.0
