"""What a row is told and what it tells."""

import random
import time
import traceback
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.tools import ToolMissing

_SHOWN_WRONGS = 12


def any_seed() -> int:
    """Return the seed of a run that nobody replays."""
    return random.randrange(2**32)  # noqa: S311  # no secret


@dataclass(frozen=True, slots=True)
class Plan:
    """How a row is run."""

    seed: int
    is_full: bool = False
    count: int | None = None
    """Of rounds, where somebody says how many."""

    def rounds(self, short: int, full: int) -> int:
        """Return how many rounds to run."""
        return self.count or (full if self.is_full else short)

    def replay(self, name: str) -> str:
        """Return the command that does the same again."""
        form = f" --rounds {self.count}" if self.count else "" if self.is_full else " --short"
        return f"python -m tests.faults --row {name} --seed {self.seed}{form}"

    def rng(self, name: str) -> random.Random:
        """Return the source of a row's moments and choices."""
        return random.Random(f"{self.seed} {name}")  # noqa: S311  # no secret


@dataclass(slots=True)
class Report:
    """Figures, and everything that was wrong."""

    name: str
    replay: str
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    wrongs: list[str] = field(default_factory=list[str])
    seconds: float = 0

    def require(self, *, is_so: bool, otherwise: str) -> None:
        """Write down `otherwise` unless it is so."""
        if not is_so:
            self.wrongs.append(otherwise)

    def add(self, wrongs: Sequence[str], where: str = "") -> None:
        """Write down what was found."""
        self.wrongs += [f"{where}{wrong}" for wrong in wrongs]

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        verdict = f"{len(self.wrongs)} WRONG" if self.wrongs else "ok"
        lines = [f"{self.name}: {verdict} in {self.seconds:.0f} s: {figures}"]
        lines += [f"  - {wrong[:9000]}" for wrong in self.wrongs[:_SHOWN_WRONGS]]
        if len(self.wrongs) > _SHOWN_WRONGS:
            lines.append(f"  and {len(self.wrongs) - _SHOWN_WRONGS} more")
        if self.wrongs:
            lines.append(f"  replay: {self.replay}")
        return "\n".join(lines)


@asynccontextmanager
async def reporting(name: str, plan: Plan) -> AsyncGenerator[Report]:
    """Time a row."""
    report = Report(name, plan.replay(name))
    begun_at = time.monotonic()
    try:
        yield report
    except ToolMissing:
        raise
    except Exception as error:  # noqa: BLE001  # a row that breaks off is a finding, too
        words = "".join(traceback.format_exception(error))
        # What was raised, and what hypothesis did before.
        report.wrongs.append(f"broke off: {words[-9000:]}")
    report.seconds = time.monotonic() - begun_at
