"""What a server process has imported before it starts: a kill each second leaves no time for it.

The process is forked from one that imported this, and runs `agent-platform serve` as ever.
"""

import functools
import importlib
import os
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import app.cli

# All but `app.main`, which reads the settings when it is imported.
_NEEDED = """
aiosqlite alembic.command asyncpg sqlalchemy.dialects.postgresql.asyncpg
sqlalchemy.dialects.sqlite.aiosqlite uvicorn uvicorn.protocols.http.httptools_impl uvloop
app.routers.agents app.routers.docs app.routers.health app.routers.messages
app.routers.sessions app.routers.turns app.state
"""
for _name in _NEEDED.split():
    importlib.import_module(_name)


DIE_AT_COMMIT = "FAULTS_DIE_AT_COMMIT"
"""An environment variable: which of SQLite's commits, and how many seconds after its begin."""


def serve(environment: dict[str, str], folder: Path, log_path: Path) -> None:
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
