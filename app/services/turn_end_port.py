"""Port for models that hear whether somebody has finished speaking."""

from typing import Protocol


class TurnEndJudge(Protocol):
    """Port of a model that hears whether somebody has finished what they want to say."""

    @property
    def is_ready(self) -> bool:
        """True once it can be asked."""
        ...

    def prepare(self) -> None:
        """Begin to load the model, if it can be and is not; what prevents that is logged."""
        ...

    async def probability_of_end(self, pcm: bytes) -> float:
        """Return how likely it is (0 to 1) that they have finished.

        `pcm` is what was said, with a little silence at its end: 16 kHz mono, signed 16 bits.
        """
        ...
