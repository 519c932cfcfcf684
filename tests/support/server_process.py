"""The server as its users run it: a process of its own, on a free port."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import finalize

import httpx2

from tests.support import planted_secrets
from tests.support.ports import free_port
from tests.support.warm_server import WarmServer

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 35
"""A server promises 30, and the rest is for the signal and the exit."""
START_SECONDS = 300
"""It only ends a test that fails: a start takes two seconds, or more where all cores are busy."""
COMMAND = (sys.executable, "-m", "app.cli", "serve")
"""How a user starts it. It imports everything first, which is most of the CPU of a start."""


class ServerProcess:
    """Runs `agent-platform serve` with its data in `folder`, these settings and planted secrets."""

    _is_bare = False

    def __init__(
        self, folder: Path, *, command: Sequence[str] | None = None, **settings: str
    ) -> None:
        """`command` starts the server, instead of a process that has imported it already."""
        self._command = command
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.data_dir = folder / "data" if self._is_bare else folder
        self.log_path = folder / "server.log"
        inherited = {
            name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}
        }
        self._environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            **({} if self._is_bare else {"DATA_DIR": str(folder), **planted_secrets.SETTINGS}),
            **settings,
        }
        self.process: subprocess.Popen[bytes] | WarmServer | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()
        for path in self.folder.glob("*.log"):
            planted_secrets.search(planted_secrets.Place.LOG, path.read_bytes(), path.name)
        planted_secrets.search_sqlite(self.data_dir)

    def launch(self) -> subprocess.Popen[bytes] | WarmServer:
        """Start the process without waiting for it."""
        if self._command is None:
            process = WarmServer(self._environment, self.folder, self.log_path)
        else:
            with self.log_path.open("ab") as log:
                process = subprocess.Popen(
                    self._command, env=self._environment, cwd=self.folder, stdout=log, stderr=log
                )
        finalize(self, _kill, process)
        self.process = process
        return process

    def start(self) -> None:
        """Start it and wait until it is ready."""
        process = self.launch()
        give_up_at = time.monotonic() + START_SECONDS
        while not self.is_ready():
            assert process.poll() is None, self.log()
            assert time.monotonic() < give_up_at, self.log()
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as client:
                client.request("GET", "/health/ready")
                return client.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        _kill(self.process)

    def stop(self) -> int:
        """Ask it to end, and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def log(self) -> str:
        return self.log_path.read_text()

    def client(self) -> httpx2.Client:
        transport = planted_secrets.WatchedTransport()
        return httpx2.Client(base_url=self.url, timeout=120, transport=transport)


def _kill(process: subprocess.Popen[bytes] | WarmServer) -> None:
    """End a process, if it still runs; also one that a test has forgotten."""
    process.kill()
    process.wait(60)


class BareServerProcess(ServerProcess):
    """A user's first start: nothing is set but its port and these settings.

    Its data is in `folder/data`.
    """

    _is_bare = True

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, command=COMMAND, **settings)


def open_session(client: httpx2.Client, **agent: object) -> str:
    """Make an agent and a session with it; return the session's id."""
    body = {"name": "Ada", "system_prompt": "You are Ada. Answer in one short sentence."} | agent
    made = client.post("/agents", json=body)
    assert made.status_code == 201, made.text
    session = client.post("/sessions", json={"agent_id": made.json()["id"]})
    return session.json()["id"]
