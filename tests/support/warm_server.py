"""A server process that has imported what it needs before it starts, which is most of a start.

It is forked from a process that imported this, and runs `agent-platform serve` as ever.
"""

import functools
import importlib
import multiprocessing
import os
import pkgutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import app.cli
import app.http
import app.routers
from tests.support.processes import send_signal

# All but `app.main`, which reads the settings when it is imported.
_NEEDED = """
aiosqlite alembic.command asyncpg sqlalchemy.dialects.postgresql.asyncpg
sqlalchemy.dialects.sqlite.aiosqlite uvicorn uvicorn.protocols.http.httptools_impl uvloop app.state
"""
for _package in (app.http, app.routers):
    for _module in pkgutil.walk_packages(_package.__path__, f"{_package.__name__}."):
        importlib.import_module(_module.name)
for _name in _NEEDED.split():
    importlib.import_module(_name)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])

DIE_AT_COMMIT = "FAULTS_DIE_AT_COMMIT"
"""An environment variable: which of SQLite's commits, and how many seconds after its begin."""


class WarmServer:
    """`agent-platform serve` in a process of its own, with the methods of `subprocess.Popen`."""

    def __init__(self, environment: Mapping[str, str], folder: Path, log_path: Path) -> None:
        """`environment` is all that it has, and `log_path` is where its output is appended."""
        arguments = (dict(environment), folder, log_path)
        self._process: Any = _context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Return its exit status, or `None` where it still runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status. Raises `subprocess.TimeoutExpired`."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(["serve"], timeout or 0)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            send_signal(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(environment: dict[str, str], folder: Path, log_path: Path) -> None:
    """Become a server that has this environment and no other."""
    os.setsid()  # so that Ctrl-C reaches the suite alone
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if "LD_PRELOAD" in environment:  # which only a new program looks at
        os.execve(sys.executable, [sys.executable, "-m", "app.cli", "serve"], environment)  # noqa: S606
    if planted := environment.get(DIE_AT_COMMIT):
        count, delay_seconds = planted.split()
        _die_at_commit(int(count), float(delay_seconds))
    sys.exit(app.cli.main(["serve"]))


def _die_at_commit(count: int, delay_seconds: float) -> None:
    """Let a power cut come before, within or right after a commit of SQLite."""
    left = count

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def see(statement: str) -> None:
        nonlocal left
        if statement.upper().startswith("COMMIT"):
            left -= 1
            if left == 0 and not delay_seconds:
                die()
            elif left == 0:
                threading.Timer(delay_seconds, die).start()

    class Traced(sqlite3.Connection):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.set_trace_callback(see)

    sqlite3.connect = functools.partial(sqlite3.connect, factory=Traced)
