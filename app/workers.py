"""`agent-platform serve --workers N`: processes that share a port.

On Linux each listens for itself (SO_REUSEPORT), so the kernel spreads connections evenly and gives
none to a process that is gone. Elsewhere they share one socket.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.server import Server

from app.core.config import Settings
from app.core.errors import StartRefused
from app.core.logging import configure_logging
from app.core.supervisor import Supervisor
from app.state import prepare

_STOP_SECONDS = 29.0
"""A worker is gone 30 s after SIGTERM at the latest; what hangs is killed shortly before."""
_EACH_LISTENS = sys.platform == "linux"


def require_several(settings: Settings) -> None:
    """Raise `StartRefused` where one process is all there can be, and say what to do."""
    if sys.platform == "win32":
        raise StartRefused("On Windows there is one worker: set WORKERS=1.")
    if settings.parsed_database_url.is_sqlite:
        raise StartRefused(
            "A SQLite file is served by one process: set WORKERS=1, or set DATABASE_URL to a "
            "PostgreSQL database, which several can share."
        )
    if settings.needs_embedded_engine:
        raise StartRefused(
            "The embedded engine uses every core as it is, and each worker would load its models "
            "again: set WORKERS=1, or set OPENAI_API_KEY (or base URLs) for chat and speech."
        )


def serve(settings: Settings, count: int, options: Mapping[str, Any]) -> int:
    """Serve with `count` processes until SIGTERM; return the exit status.

    `options` are uvicorn's. What is done once, such as development's migrations, is done before.
    """
    config = Config("app.main:app", **options)
    config.load()  # here, so that it is done once and its memory is shared
    configure_logging(settings.log_level)
    shared = _reserve(config.host, config.port)
    host, port = shared.getsockname()[:2]

    def prepare_all() -> int:
        try:
            asyncio.run(prepare(settings))
        except StartRefused as error:
            sys.stderr.write(f"{error}\n")
            return STARTUP_FAILURE
        return 0

    def work() -> int:
        listener = _bind(host, port) if _EACH_LISTENS else shared
        server = Server(config)
        server.run([listener])
        return 0 if server.started else STARTUP_FAILURE

    supervisor = Supervisor(work, count, refusal=STARTUP_FAILURE, stop_seconds=_STOP_SECONDS)
    return supervisor.run(prepare_all)


def _reserve(host: str, port: int) -> socket.socket:
    """Bind the port, so that it stays ours while no worker listens. Raises `StartRefused`."""
    try:
        # Two servers that both allow sharing would share with each other.
        _bind(host, port, may_share=False).close()
        return _bind(host, port)
    except OSError as error:
        raise StartRefused(
            f"Cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}."
        ) from error


def _bind(host: str, port: int, *, may_share: bool = _EACH_LISTENS) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if may_share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
