"""The test bed of `bench.scale`: a provider, a PostgreSQL server, and servers that use them."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.large import fill_postgres, fill_sqlite
from bench.processes import Server, free_port
from tests.support.postgres import PostgresServer

DATABASES = ("PostgreSQL", "SQLite")
_WITHOUT_LIMITS: Mapping[str, str] = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
    "LIMIT_TOKENS_PER_DAY": "1000000000000",
    "LIMIT_USD_PER_DAY": "1000000",
}
"""Limits that are never reached, but whose checks are measured."""


class Place:
    """A database: `name` on PostgreSQL, or a SQLite file for `None`."""

    def __init__(self, postgres: PostgresServer, folder: Path, name: str | None) -> None:
        self.name = name
        self._postgres = postgres
        self._folder = folder

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a server that uses the database."""
        url = self._postgres.url(self.name) if self.name else ""
        return {"DATABASE_URL": url, "DATA_DIR": str(self._folder)}

    def fill(self, like: str, sessions: int, messages: int) -> list[str]:
        """Add sessions with `bench.large`; a server must have created the tables before."""
        if self.name:
            return fill_postgres(self._postgres, self.name, like, sessions, messages)
        return fill_sqlite(self._folder / "agent-platform.db", like, sessions, messages)


class Site:
    """Starts the provider and PostgreSQL, and builds servers; `stack` stops what it started."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._folder = folder
        self._places = 0
        self.postgres = stack.enter_context(PostgresServer())
        port = free_port()
        arguments = ["bench.provider", str(port)]
        self.provider = stack.enter_context(Server(arguments, port, folder / "provider", {}))

    def place(self, kind: str) -> Place:
        """Create a new database; `kind` is one of `DATABASES`."""
        self._places += 1
        name = f"scale_{self._places}" if kind == "PostgreSQL" else None
        if name:
            self.postgres.create_database(name)
        return Place(self.postgres, self._folder / f"data-{self._places}", name)

    def server(self, place: Place, **settings: str) -> Server:
        """Return our server with a database, not started yet."""
        port = free_port()
        environment = {
            "PORT": str(port),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.provider.port}/v1",
            "OPENAI_API_KEY": "not-checked",
            "DATABASE_POOL_SIZE": "20",
            **_WITHOUT_LIMITS,
            **place.settings,
            **settings,
        }
        return Server(["app.cli", "serve"], port, self._folder / f"server-{port}", environment)

    def floor(self, database: str) -> Server:
        """Return the hand-written server with a database of `make_floor_sessions`."""
        port = free_port()
        url = self.postgres.url(database)
        arguments = ["bench.floor", str(port), url, str(self.provider.port)]
        return Server(arguments, port, self._folder / f"floor-{port}", {})
