"""What a job may use of the machine; each job is a process, so the kernel enforces it."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_LONG_CPU_SECONDS = 0.5
"""A job of more yields to the server and to those that are shorter; somebody waits for these."""
_LONG_NICENESS = 10
_MEGABYTE = 1 << 20
CAN_FORK = sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class JobLimits:
    """The limits of one job."""

    cpu_seconds: int = 20
    """About five times what ten minutes of sound take."""
    memory_bytes: int = 192 * _MEGABYTE
    """Beyond what the worker process has by itself."""
    output_bytes: int = 32 * _MEGABYTE
    wall_seconds: float = 120.0
    """Since it began, with many others on few processors."""

    def to_fields(self) -> dict[str, Any]:
        """Return what a frame can carry."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `to_fields` wrote."""
        return cls(**fields)


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends; Linux alone can do so."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def confine_job(limits: JobLimits) -> None:
    """Give up what a job does not need, for good: files, network, processes, memory, time.

    Linux alone. What is open stays open. The memory counts from what the process has now.
    """
    import resource

    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)  # no core file, and nobody of our own user may look inside
    memory_bytes = _address_space_bytes() + limits.memory_bytes
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, 0),  # no file, socket or pipe can be opened any more
    ):
        resource.setrlimit(kind, (value, value))
    # The first ends it with a signal of its own, the second without mercy.
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_seconds, limits.cpu_seconds + 1))
    signal.signal(signal.SIGPROF, _yield_to_others)
    signal.setitimer(signal.ITIMER_PROF, _LONG_CPU_SECONDS)


def _yield_to_others(*_: object) -> None:
    os.nice(_LONG_NICENESS)


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
