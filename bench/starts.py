"""How soon a server is ready, and what it takes while nobody asks: ours beside the floors."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from bench.processes import Server, memory_mb

_IDLE_SECONDS = 2
"""After the first answer, so that what follows a start is in the memory, too."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a database at its revision, or the medians of several."""

    seconds: float
    """From the start of the process to the first 200 of `/health/ready`."""
    cpu_seconds: float
    idle_memory_mb: float
    """Of all its processes."""


def measure(targets: Mapping[str, Callable[[], Server]], rounds: int) -> dict[str, Start]:
    """Start each in turn, `rounds` times over, so that the machine's noise is in all of them."""
    starts: dict[str, list[Start]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, make in targets.items():
            starts[name].append(_start_once(make()))
    return {name: _median(found) for name, found in starts.items()}


def _start_once(server: Server) -> Start:
    with server:
        time.sleep(_IDLE_SECONDS)
        return Start(server.start_seconds, server.start_cpu_seconds, memory_mb(server.pid))


def _median(starts: list[Start]) -> Start:
    return Start(
        median(start.seconds for start in starts),
        median(start.cpu_seconds for start in starts),
        median(start.idle_memory_mb for start in starts),
    )
