"""Measures the start time and the idle memory of servers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from bench.processes import Server, memory_mb

_IDLE_SECONDS = 2
"""The wait after the first response, so that work after the start is in the memory as well."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start with an up-to-date database, or the medians of several."""

    seconds: float
    """From the start of the process to the first 200 of `/health/ready`."""
    cpu_seconds: float
    idle_memory_mb: float
    """The resident memory of all of the server's processes."""


def measure(targets: Mapping[str, Callable[[], Server]], rounds: int) -> dict[str, Start]:
    """Start the servers alternately, `rounds` times each; return the medians.

    Alternating lets the machine's noise affect all of them alike.
    """
    starts: dict[str, list[Start]] = {name: [] for name in targets}
    for _ in range(rounds):
        for name, make in targets.items():
            starts[name].append(_start_once(make()))
    return {name: _median(server_starts) for name, server_starts in starts.items()}


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
