"""Starts and stops the measured processes, and reads their CPU and memory from `/proc`."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent
_READY_SECONDS = 60
_STOP_SECONDS = 35
_POLL_SECONDS = 0.01
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_CPU_CLOCK = 2
"""Linux's clock type for the CPU time of a process; see `clock_getcpuclockid`(3)."""


class ServerFailed(RuntimeError):
    """A server did not start; the message contains the end of its log."""


class Server:
    """The process `python -m ARGUMENTS`, which is ready once `GET /health/ready` answers 200.

    Its environment has only `settings` and what Python itself needs, and it reads no `.env`.
    """

    def __init__(
        self, arguments: Sequence[str], port: int, folder: Path, settings: Mapping[str, str]
    ) -> None:
        self.port = port
        self.start_seconds = 0.0
        self.start_cpu_seconds = 0.0
        self._arguments = arguments
        self._folder = folder
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._environment = {**inherited, "PYTHONPATH": str(ROOT), **settings}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the running process."""
        if self._process is None:
            raise ServerFailed("The server was not started: use it as a context manager.")
        return self._process.pid

    def __enter__(self) -> Self:
        """Start the process, wait until it is ready, and measure the seconds and CPU of that."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log_path = self._folder / "log"
        started_at = time.monotonic()
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own modules
                [sys.executable, "-m", *self._arguments],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() - started_at > _READY_SECONDS:
                self.stop()
                raise ServerFailed(f"{self._arguments[0]}: {log_path.read_text()[-2000:]}")
            time.sleep(_POLL_SECONDS)
        self.start_seconds = time.monotonic() - started_at
        self.start_cpu_seconds = cpu_seconds(self.pid)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the process."""
        self.stop()

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after 35 s."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def free_port() -> int:
    """Return a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process, its threads and all of its children."""
    total = 0.0
    for family_pid in _family(pid):
        with suppress(OSError):  # the process has ended
            total += time.clock_gettime((~family_pid << 3) | _CPU_CLOCK)
    # Ended children of `pid` itself only: it includes those of its children once they end.
    with suppress(OSError, IndexError):
        total += sum(int(ticks) for ticks in _stat(pid)[13:15]) / _TICKS_PER_SECOND
    return total


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process and its children, in MB (2**20 bytes)."""
    pages = 0
    for family_pid in _family(pid):
        with suppress(OSError):
            pages += int(Path(f"/proc/{family_pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def children(pid: int) -> list[int]:
    """Return the living children of a process."""
    return [each for each in _family(pid)[1:] if int(_stat(each)[1]) == pid]


def _family(pid: int) -> list[int]:
    """Return a process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    family = [pid]
    for member in family:  # grows while it is read
        family += children.get(member, [])
    return family


def _stat(pid: int) -> list[str]:
    """Return the fields of `/proc/PID/stat` from the third on; the second may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
