"""The server as its users run it: a process of its own, on a free port."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from tests import canaries

ROOT = Path(__file__).parents[2]
START_SECONDS = 60


class ServerProcess:
    """Runs `agent-platform serve` in `folder`, with these settings and the planted secrets.

    One that `is_bare` has nothing but its port and these settings; its data is in `folder/data`.
    """

    def __init__(self, folder: Path, *, is_bare: bool = False, **settings: str) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.data_dir = folder / "data" if is_bare else folder
        self.log_path = folder / "server.log"
        inherited = {
            name: value for name, value in os.environ.items() if name in {"PATH", "HOME", "LANG"}
        }
        self._environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PORT": str(self.port),
            **({} if is_bare else {"DATA_DIR": str(folder), **canaries.SETTINGS}),
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()
        for path in self.folder.glob("*.log"):
            canaries.search(canaries.Place.LOG, path.read_bytes(), path.name)
        canaries.search_sqlite(self.data_dir)

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve"],
                env=self._environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        return self.process

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
            return httpx2.get(f"{self.url}/health/ready", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """Ask it to end, and return its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(35)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def log(self) -> str:
        return self.log_path.read_text()

    def client(self) -> httpx2.Client:
        transport = canaries.WatchedTransport()
        return httpx2.Client(base_url=self.url, timeout=120, transport=transport)


def open_session(client: httpx2.Client, **agent: object) -> str:
    """Make an agent and a session with it; return the session's id."""
    body = {"name": "Ada", "system_prompt": "You are Ada. Answer in one short sentence."} | agent
    made = client.post("/agents", json=body)
    session = client.post("/sessions", json={"agent_id": made.json()["id"]})
    return session.json()["id"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
