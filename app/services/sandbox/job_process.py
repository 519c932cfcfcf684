"""A process for the jobs of one caller, made by forking the worker; Linux alone has it.

A file that crashes its reader, or takes it over, meets no other caller's file. The process is warm
when its job comes: the pages that it shares with the worker are copied before, which takes 10 ms on
machines where faults are slow.
"""

import fcntl
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from app.services.sandbox.frames import HEAD, ProtocolBroken, decode_head
from app.services.sandbox.jobs import (
    PIECE_BYTES,
    function_named,
    output_of,
    read_frame,
    write_all,
)
from app.services.sandbox.limits import JobLimits, confine_job, die_with_parent

_RETIRED_CPU_SECONDS = 0.25
"""A process that has worked this long is not used again."""


class JobProcess:
    """The worker's side of one process: at most one job is in it."""

    def __init__(self, pid: int, inlet: int, outlet: int) -> None:
        self.pid = pid
        self.inlet = inlet
        """Jobs go in; never waited for, as whoever reads it may have been taken over."""
        self.outlet = outlet
        self.job: int | None = None
        self.caller = ""
        """Whose files it has read; empty for a fresh one."""
        self.idle_since = time.monotonic()
        self._unsent = memoryview(b"")
        self._output = bytearray()
        self._expected_bytes = 0
        self._cpu_before = 0.0
        self._cpu_when_fresh = 0.0

    @classmethod
    def fork(cls, warm_up: Sequence[str], limits: JobLimits) -> "JobProcess":
        """Make a process. Raises `OSError`."""
        jobs, inlet = os.pipe()
        outlet, output = os.pipe()
        for pipe in (inlet, output):
            with suppress(OSError):  # fewer trips for long sound, where the system allows it
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
        try:
            pid = os.fork()
        except OSError:
            for pipe in (jobs, inlet, outlet, output):
                os.close(pipe)
            raise
        if pid == 0:
            _serve(jobs, output, warm_up, limits)
        os.close(jobs)
        os.close(output)
        os.set_blocking(inlet, False)  # its only argument
        return cls(pid, inlet, outlet)

    @property
    def cpu_seconds(self) -> float:
        """What it has used, as the kernel counts it."""
        return time.clock_gettime(~self.pid << 3 | 2)

    @property
    def is_retired(self) -> bool:
        """True where it has worked enough."""
        return self.cpu_seconds - self._cpu_when_fresh > _RETIRED_CPU_SECONDS

    def give(self, job: int, caller: str, frame: bytes) -> None:
        """Send it a job; `send` sends what does not fit at once."""
        self._cpu_before = self.cpu_seconds
        if not self.caller:
            self._cpu_when_fresh = self._cpu_before
        self.job, self.caller = job, caller
        self._unsent = memoryview(frame)
        self._output = bytearray()
        self._expected_bytes = 0

    def send(self) -> bool:
        """Send what it takes of its job; return whether some is left."""
        with suppress(BlockingIOError, BrokenPipeError):  # its end is read as such
            while self._unsent:
                self._unsent = self._unsent[os.write(self.inlet, self._unsent) :]
        return bool(self._unsent)

    def read(self, limit_bytes: int) -> bool:
        """Take what came of its answer; return whether it can go on.

        It cannot where it has ended, or says what no job says.
        """
        piece = os.read(self.outlet, PIECE_BYTES)
        self._output += piece
        if self.job is None or len(self._output) > limit_bytes:
            return False
        if not self._expected_bytes and len(self._output) >= HEAD.size:
            try:
                sizes = decode_head(bytes(self._output[: HEAD.size]))
            except ProtocolBroken:
                return False
            self._expected_bytes = HEAD.size + sum(sizes)
        return bool(piece) and not 0 < self._expected_bytes < len(self._output)

    def finish(self) -> tuple[float, bytearray] | None:
        """Return the CPU seconds and the answer of its job, once it is whole; then it is free."""
        if not self._expected_bytes or len(self._output) < self._expected_bytes:
            return None
        output, self._output = self._output, bytearray()
        used = self.cpu_seconds - self._cpu_before
        self.job, self.idle_since = None, time.monotonic()
        return used, output

    def end(self) -> tuple[float, str]:
        """Kill it; return the CPU seconds of its last job, and what it died of."""
        os.close(self.inlet)
        os.close(self.outlet)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # nothing, where it is dead already
        _, status, used = os.wait4(self.pid, 0)
        cpu_seconds = used.ru_utime + used.ru_stime - self._cpu_before
        code = os.waitstatus_to_exitcode(status)
        return cpu_seconds, signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _serve(jobs: int, output: int, warm_up: Sequence[str], limits: JobLimits) -> NoReturn:
    """Do jobs, with nothing but their bytes and the two pipes."""
    try:
        die_with_parent()
        os.dup2(jobs, 0)
        os.dup2(output, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # of native code, which nobody reads
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for name in warm_up:
            function_named(name)()
        confine_job(limits)
        while frame := read_frame(0):
            write_all(1, output_of(*frame))
    finally:
        os._exit(0)
