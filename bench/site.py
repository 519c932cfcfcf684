"""A provider, a database server, and our servers on them, for measuring what grows."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.large import fill_postgres, fill_sqlite
from bench.processes import Server, free_port
from tests.postgres import PostgresServer

DATABASES = ("PostgreSQL", "SQLite")
_WITHOUT_LIMITS: Mapping[str, str] = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
    "LIMIT_TOKENS_PER_DAY": "1000000000000",
    "LIMIT_USD_PER_DAY": "1000000",
}
"""What they cost is measured, and none is reached."""


class Place:
    """A database: by its name on Postgres, or a SQLite file."""

    def __init__(self, postgres: PostgresServer, folder: Path, name: str | None) -> None:
        self.name = name
        self._postgres = postgres
        self._folder = folder

    @property
    def settings(self) -> dict[str, str]:
        """What tells a server to use it."""
        url = self._postgres.url(self.name) if self.name else ""
        return {"DATABASE_URL": url, "DATA_DIR": str(self._folder)}

    def fill(self, like: str, sessions: int, messages: int) -> list[str]:
        """Add sessions as `bench.large` does; a server has made the tables."""
        if self.name:
            return fill_postgres(self._postgres, self.name, like, sessions, messages)
        return fill_sqlite(self._folder / "agent-platform.db", like, sessions, messages)


class Site:
    """Everything that is measured; it ends with the stack."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._folder = folder
        self._places = 0
        self.postgres = stack.enter_context(PostgresServer())
        port = free_port()
        arguments = ["bench.provider", str(port)]
        self.provider = stack.enter_context(Server(arguments, port, folder / "provider", {}))

    def place(self, kind: str) -> Place:
        """Make a new database of one of `DATABASES`."""
        self._places += 1
        name = f"scale_{self._places}" if kind == "PostgreSQL" else None
        if name:
            self.postgres.create_database(name)
        return Place(self.postgres, self._folder / f"data-{self._places}", name)

    def server(self, place: Place, **settings: str) -> Server:
        """Return our server on a database."""
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
        """Return the hand-written server on a database of `make_floor_sessions`."""
        port = free_port()
        url = self.postgres.url(database)
        arguments = ["bench.floor", str(port), url, str(self.provider.port)]
        return Server(arguments, port, self._folder / f"floor-{port}", {})
