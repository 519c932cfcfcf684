"""`agent-platform serve --workers N`: processes that share a port.

On Linux each has a listening socket of its own (SO_REUSEPORT), so the kernel spreads connections
evenly. Elsewhere they share one. The supervisor holds the sockets, so a connection that comes while
a worker is replaced waits for the next one. On SIGHUP the supervisor starts the program again in
its own process, and replaces one worker after the other.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override
from uvicorn.config import STARTUP_FAILURE, Config

from app.core.config import Settings
from app.core.errors import StartRefused
from app.core.logging import configure_logging
from app.server.draining_server import DrainingServer
from app.server.supervisor import HANDLED, RETIRE, Inherited, Supervisor
from app.state import prepare
from app.telemetry.workers import share_metrics

_STOP_SECONDS = 29.0
"""A worker is gone 30 s after SIGTERM at the latest; what hangs is killed shortly before."""
_EACH_LISTENS = sys.platform == "linux"
_RETIRE_SECONDS = 5.0
"""How long the clients of a worker that retires have for one more request on their connections."""
_STATE = "AGENT_PLATFORM_SUPERVISOR"
"""The environment variable in which a supervisor that starts itself again finds what it had.

`app.cli` looks for it, too: then there is a supervisor even for one worker.
"""
CHECK = "--check"


def require_several(settings: Settings) -> None:
    """Raise `StartRefused` where one process is all there can be, and say what to do."""
    if sys.platform == "win32":
        raise StartRefused("On Windows there is one worker: set WORKERS=1.")
    if settings.parsed_database_url.is_sqlite:
        raise StartRefused(
            "A SQLite file is served by one process: set WORKERS=1, or set DATABASE_URL to a "
            "PostgreSQL database, which several can share."
        )
    if settings.embedded_capabilities:
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
    configure_logging(settings.log_level, settings.chosen_log_format)
    inherited, sockets = _take_over()
    sockets += _reserve(config.host, config.port, count, sockets)
    while len(sockets) > max(count, 1):  # whose worker retires
        sockets.pop().close()

    def prepare_all() -> int:
        try:
            asyncio.run(prepare(settings))
        except StartRefused as error:
            sys.stderr.write(f"{error}\n")
            return STARTUP_FAILURE
        return 0

    def work() -> int:
        listener = sockets[supervisor.slot % len(sockets)]
        server = WorkerServer(config, supervisor.notify_ready)
        server.run([listener])
        return 0 if server.started else STARTUP_FAILURE

    supervisor = Supervisor(
        work,
        count,
        refusal=STARTUP_FAILURE,
        stop_seconds=_STOP_SECONDS,
        reload=lambda inherited: _start_again(inherited, sockets),
        inherited=inherited,
    )
    with tempfile.TemporaryDirectory(prefix="agent-platform-") as folder:
        share_metrics(Path(folder))
        return supervisor.run(prepare_all)


class WorkerServer(DrainingServer):
    """A server that says when it serves and can retire without refusing a request."""

    def __init__(self, config: Config, on_ready: Callable[[], None]) -> None:
        """`on_ready` is called once connections are accepted."""
        super().__init__(config)
        self._on_ready = on_ready
        self._retire_at: float | None = None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        signal.signal(RETIRE, self._retire)
        self._on_ready()

    def _retire(self, *_: object) -> None:
        if self._retire_at is None:
            self._retire_at = time.monotonic() + _RETIRE_SECONDS

    @override
    async def on_tick(self, counter: int) -> bool:
        """Once retired, close each connection after its next answer; then shut down as usual."""
        should_exit = await super().on_tick(counter)
        if self._retire_at is None or should_exit:
            return should_exit
        for server in self.servers:
            server.close()
        closing = (b"connection", b"close")
        headers = [each for each in self.server_state.default_headers if each != closing]
        self.server_state.default_headers = [*headers, closing]
        if not self.server_state.connections or time.monotonic() > self._retire_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return False


def _take_over() -> tuple[Inherited | None, list[socket.socket]]:
    """Return what the supervisor had that this process was until now, and its sockets."""
    state: dict[str, Any] = json.loads(os.environ.pop(_STATE, "{}"))
    if state.get("pid") != os.getpid():  # a child of a supervisor, with its environment
        return None, []
    sockets = [socket.socket(fileno=each) for each in state["sockets"]]
    for descriptor in (*state["sockets"], *state["descriptors"]):
        os.set_inheritable(descriptor, False)  # noqa: FBT003  # it has no keyword
    workers = {int(pid): slot for pid, slot in state["workers"].items()}
    return Inherited(workers, state["descriptors"]), sockets


def _start_again(inherited: Inherited, sockets: Sequence[socket.socket]) -> None:
    """Replace this process by a new start of its command, which keeps workers and sockets.

    Returns where that would fail, which is tried in another process before.
    """
    command = [sys.executable, *sys.orig_argv[1:]]
    if subprocess.run([*command, CHECK], check=False).returncode:  # noqa: S603  # our own
        return
    descriptors = [each.fileno() for each in sockets]
    for descriptor in (*descriptors, *inherited.descriptors):
        os.set_inheritable(descriptor, True)  # noqa: FBT003  # it has no keyword
    state = {
        "pid": os.getpid(),
        "workers": inherited.workers,
        "descriptors": list(inherited.descriptors),
        "sockets": descriptors,
    }
    # What comes before there are handlers again must wait, as it would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    os.execve(sys.executable, command, {**os.environ, _STATE: json.dumps(state)})  # noqa: S606


def _reserve(
    host: str, port: int, count: int, existing: Sequence[socket.socket]
) -> list[socket.socket]:
    """Bind the port for as many workers as have no socket yet. Raises `StartRefused`."""
    if existing:
        host, port = existing[0].getsockname()[:2]
    try:
        if not existing:
            # Two servers that both allow sharing would share with each other.
            with _bind(host, port, may_share=False) as alone:
                port = alone.getsockname()[1]
        needed = count if _EACH_LISTENS else 1
        return [_bind(host, port) for _ in range(len(existing), needed)]
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
