"""What the worker may use of the machine, and its end where a step takes too long."""

import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio

_MEGABYTE = 1 << 20
_STEP_CPU_SECONDS = 5.0
"""A single step of the event loop that computes for longer ends the process."""
_BEAT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """The limits of the process."""

    memory_bytes: int | None = 512 * _MEGABYTE
    """Beyond what it has after its start; `None` where it starts programs of the operator's."""
    files: int = 1024

    def to_fields(self) -> dict[str, Any]:
        """Return what a frame can carry."""
        return asdict(self)


def confine_worker(limits: WorkerLimits) -> None:
    """Give up files, core dumps and memory, for good, where the system can; not the network."""
    if sys.platform == "win32":
        return
    import resource

    kinds: list[tuple[int, int]] = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.files),
    ]
    if limits.memory_bytes is not None and sys.platform == "linux":
        kinds.append((resource.RLIMIT_FSIZE, 0))
        kinds.append((resource.RLIMIT_AS, _address_space_bytes() + limits.memory_bytes))
    for kind, value in kinds:
        _, most = resource.getrlimit(kind)
        limit = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(kind, (limit, limit))


async def watch_loop() -> None:
    """Have the kernel end this process where its event loop computes without a pause.

    No thread and no time-out of Python's runs while a native function computes; this signal ends
    the process whatever it does.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    while True:
        signal.setitimer(signal.ITIMER_PROF, _STEP_CPU_SECONDS)
        await anyio.sleep(_BEAT_SECONDS)


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
