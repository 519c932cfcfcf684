"""Servers in processes of their own, on one database, before one provider."""

import http.client
import os
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import asyncpg
from anyio.to_thread import run_sync

from tests.support import planted_secrets
from tests.support.ports import free_port
from tests.support.postgres import PgBouncer, PostgresServer
from tests.support.processes import send_signal
from tests.support.provider import Provider
from tests.support.server_process import ROOT, START_SECONDS
from tests.support.warm_server import WarmServer

SCHEMA = "agent_platform"


class Server:
    """`agent-platform serve`, over and over on one port with one data folder."""

    def __init__(self, data_dir: Path, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = Path(tempfile.mkstemp(prefix="server-", suffix=".log")[1])
        self.data_dir = data_dir
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ")
                     if name in os.environ}  # fmt: skip
        self.environment = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "DATA_DIR": str(data_dir),
            "PORT": str(self.port),
            **planted_secrets.SETTINGS,
            **settings,
        }
        self._process: WarmServer | None = None

    @property
    def pid(self) -> int:
        return self._started().pid

    def _started(self) -> WarmServer:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        give_up_at = time.monotonic() + START_SECONDS
        while not self.is_ready():
            assert not self.has_ended(), self.log()[-3000:]
            assert time.monotonic() < give_up_at, self.log()[-3000:]
            time.sleep(0.01)

    def launch(self) -> None:
        self._process = WarmServer(self.environment, self.data_dir, self.log_path)

    def has_ended(self) -> bool:
        return self._started().poll() is not None

    def is_ready(self) -> bool:
        return self.status_of("/health/ready") == http.HTTPStatus.OK

    def status_of(self, path: str, body: str | None = None) -> int:
        """Return the status of a GET, or of a POST of JSON, or 0 where nothing answers."""
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as client:
                headers = {"Content-Type": "application/json"} if body else {}
                client.request("POST" if body else "GET", path, body, headers)
                return client.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0

    def kill(self) -> None:
        """End it as a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)

    def terminate(self) -> None:
        """Ask it to end."""
        send_signal(self.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Return the exit status, or `None` where it still runs."""
        try:
            return self._started().wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def close(self) -> None:
        self.kill()
        planted_secrets.search(planted_secrets.Place.LOG, self.log(), "server's log")
        self.log_path.unlink(missing_ok=True)


@dataclass(slots=True)
class Platform:
    """What a row breaks."""

    provider: Provider
    folder: Path
    postgres: PostgresServer | None = None
    pooler: PgBouncer | None = None
    servers: list[Server] = field(default_factory=list[Server])

    @property
    def is_sqlite(self) -> bool:
        return self.postgres is None

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    @property
    def database_path(self) -> Path:
        return self.folder / "agent-platform.db"

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return rows, past the server; `{schema}` stands before each table."""
        if self.postgres is None:
            return await run_sync(self._query_sqlite, sql.replace("{schema}", ""))
        driver: Any = asyncpg  # has no types
        connection = await driver.connect(self.postgres.url())
        try:
            rows = await connection.fetch(sql.replace("{schema}", f"{SCHEMA}."))
        finally:
            await connection.close()
        return [tuple(row) for row in rows]

    def _query_sqlite(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database_path, timeout=10)) as connection, connection:
            return connection.execute(sql).fetchall()

    async def unsettled(self) -> int:
        """Return how many turns are neither answered nor failed."""
        rows = await self.query(
            "SELECT count(*) FROM {schema}turns WHERE status IN ('queued', 'in_progress')"
        )
        return rows[0][0]

    def add_server(self, **settings: str) -> Server:
        """Make another server on the database; it is not started."""
        if self.pooler is not None:
            settings.setdefault("DATABASE_URL", self.pooler.url())
        server = Server(
            self.folder,
            OPENAI_API_KEY=planted_secrets.PROVIDER_KEY,
            OPENAI_BASE_URL=self.provider.base_url,
            LIMIT_REQUESTS_PER_MINUTE="0",
            LIMIT_CONCURRENT_TURNS="0",
            LIMIT_TOKENS_PER_DAY="0",
            LIMIT_USD_PER_DAY="0",
            **settings,
        )
        self.servers.append(server)
        return server


@asynccontextmanager
async def platform(
    *, postgres: bool, servers: int = 1, folder: Path | None = None, durable: bool = False
) -> AsyncGenerator[Platform]:
    """Run a provider, a database and servers; `durable` lets Postgres write to the disk."""
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        broken = Platform(stack.enter_context(Provider()), folder)
        if postgres:
            broken.postgres = PostgresServer(fsync=durable)
            await run_sync(broken.postgres.start)
            stack.callback(broken.postgres.close)
            broken.pooler = PgBouncer(broken.postgres)
            await run_sync(broken.pooler.start)
            stack.callback(broken.pooler.close)
        try:
            for _ in range(servers):
                server = broken.add_server()
                await run_sync(server.start)
            yield broken
        finally:
            with anyio.CancelScope(shield=True):
                for server in broken.servers:
                    await run_sync(server.close)
                await run_sync(planted_secrets.search_sqlite, folder)
