"""`python -m bench.scale [PART ...]`: what grows, and what must not.

Parts: `history` (sessions of 10 to 100,000 messages), `large` (a million messages beside them),
`streams` (2,000 at once), `followers` (5,000 of turns that say nothing), `first-token`, and
`processes` (one, two, and two servers). Linux only; it needs PostgreSQL's programs.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from bench.large import fill
from bench.load import quantile
from bench.processes import Server, cpu_seconds, free_port, memory_mb
from bench.report import table
from bench.sessions import ServerSessions
from bench.wire import ClientConnection, post
from tests.postgres import PostgresServer

_QUESTION = "What happened then?"
_HISTORIES = (10, 1000, 100_000)
_TURNS = 80
_LARGE_SESSIONS, _LARGE_MESSAGES = 50_000, 20
_STREAMS = 2000
_FOLLOWERS = 5000
_FOLLOWED_TURNS = 50
_FIRST_TOKENS = 200
_SECONDS_OF_LOAD = 6.0
_DONE = b"turn.completed"

Cells = list[list[str]]


class Site:
    """A provider, a database server, and our servers on them."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self._databases = 0
        self.postgres = stack.enter_context(PostgresServer())
        port = free_port()
        arguments = ["bench.provider", str(port)]
        self._provider = stack.enter_context(Server(arguments, port, folder / "provider", {}))

    def database(self) -> str:
        """Make a database on Postgres, and return its name."""
        self._databases += 1
        name = f"scale_{self._databases}"
        self.postgres.create_database(name)
        return name

    def server(self, database: str | None, *arguments: str) -> Server:
        """Return our server on a Postgres database, or on a SQLite file of its own."""
        port = free_port()
        folder = self._folder / f"server-{port}"
        settings = {
            "DATA_DIR": str(folder),
            "PORT": str(port),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self._provider.port}/v1",
            "OPENAI_API_KEY": "not-checked",
            "DATABASE_URL": self.postgres.url(database) if database else "",
            "DATABASE_POOL_SIZE": "20",
            **_WITHOUT_LIMITS,
        }
        return Server(["app.cli", "serve", *arguments], port, folder, settings)


_WITHOUT_LIMITS: Mapping[str, str] = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
    "LIMIT_TOKENS_PER_DAY": "1000000000000",
    "LIMIT_USD_PER_DAY": "1000000",
}
"""What they cost is measured, and none is reached."""


@dataclass(slots=True)
class Stream:
    """One turn's stream as a client sees it."""

    arrivals: list[float] = field(default_factory=list[float])
    tail: bytes = b""
    first_delta_at: float = 0.0

    def take(self, piece: bytes) -> None:
        """Note a piece."""
        self.arrivals.append(time.perf_counter())
        if not self.first_delta_at and b"output_text.delta" in piece:
            self.first_delta_at = self.arrivals[-1]
        self.tail = (self.tail + piece)[-4000:]

    def longest_gap_ms(self) -> float:
        """Return the longest silence between two pieces."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return max(((later - sooner) * 1000 for sooner, later in pairs), default=0.0)


def text_request(session_id: str, *, streams: bool = False) -> bytes:
    """Return a request for a turn."""
    body = orjson.dumps({"session_id": session_id, "content": _QUESTION})
    return post("/messages/text", body, *(["Accept: text/event-stream"] if streams else []))


def get(path: str) -> bytes:
    """Return a request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def _one_by_one(port: int, requests: Sequence[bytes]) -> list[float]:
    """Send requests on one connection; return how long each took, in milliseconds, sorted."""
    connection = await ClientConnection.open(port)
    taken: list[float] = []
    for request in requests:
        sent_at = time.perf_counter()
        status = await connection.exchange(request, _ignore)
        if status != 200:  # noqa: PLR2004  # OK
            raise RuntimeError(f"HTTP {status}")
        taken.append((time.perf_counter() - sent_at) * 1000)
    connection.close()
    return sorted(taken)


def history(site: Site) -> Cells:
    """Measure turns and pages in short and long sessions, in an else empty database."""
    return _histories(site, large=False)


def large(site: Site) -> Cells:
    """The same beside a million messages of 50,000 sessions."""
    return _histories(site, large=True)


def _histories(site: Site, *, large: bool) -> Cells:
    cells = [["messages in the session", "text turn p50 ms", "p95 ms", "CPU-ms", "page p50 ms"]]
    database = site.database()
    with site.server(database) as server:
        like = ServerSessions(server.port).make("tokens-20", 1)[0]
        if large:
            fill(site.postgres, database, like, _LARGE_SESSIONS, _LARGE_MESSAGES)
        sessions = {count: fill(site.postgres, database, like, 4, count) for count in _HISTORIES}
        for ids in sessions.values():
            asyncio.run(_one_by_one(server.port, [text_request(ids[0])] * 10))
        for count, ids in sessions.items():
            before = cpu_seconds(server.pid)
            turns = asyncio.run(_one_by_one(server.port, [text_request(ids[1])] * _TURNS))
            cpu_ms = (cpu_seconds(server.pid) - before) * 1000 / _TURNS
            page = get(f"/sessions/{ids[2]}/messages?limit=10")
            pages = asyncio.run(_one_by_one(server.port, [page] * _TURNS))
            cells.append(
                [
                    f"{count:,}",
                    f"{quantile(turns, 0.5):.2f}",
                    f"{quantile(turns, 0.95):.2f}",
                    f"{cpu_ms:.2f}",
                    f"{quantile(pages, 0.5):.2f}",
                ]
            )
    return cells


def first_token(site: Site) -> Cells:
    """Measure what we add to the first token, one turn at a time, with a provider of no latency."""
    cells = [["database", "first token added p50 ms", "p95 ms"]]
    for name, database in (("PostgreSQL", site.database()), ("SQLite", None)):
        with site.server(database) as server:
            ids = ServerSessions(server.port).make("tokens-20-every-10-ms", 10)
            taken = asyncio.run(_first_tokens(server.port, ids))
            cells.append([name, f"{quantile(taken, 0.5):.2f}", f"{quantile(taken, 0.95):.2f}"])
    return cells


async def _first_tokens(port: int, ids: Sequence[str]) -> list[float]:
    connection = await ClientConnection.open(port)
    taken: list[float] = []
    for number in range(_FIRST_TOKENS):
        stream = Stream()
        sent_at = time.perf_counter()
        await connection.exchange(text_request(ids[number % len(ids)], streams=True), stream.take)
        taken.append((stream.first_delta_at - sent_at) * 1000)
    connection.close()
    # The provider's first token comes one step after its empty first chunk.
    return sorted(max(0.0, each - 10) for each in taken[20:])


def streams(site: Site) -> Cells:
    """Measure many streams at once of 60 tokens, one each 50 ms, on one process."""
    cells = [["database", "streams", "completed", "longest gap ms", "p99 of gaps ms", "KB each"]]
    for name, database in (("PostgreSQL", site.database()), ("SQLite", None)):
        with site.server(database) as server:
            ids = ServerSessions(server.port).make("tokens-60-every-50-ms", _STREAMS)
            idle_mb = memory_mb(server.pid)
            seen, peak_mb = asyncio.run(_stream_all(server, ids))
        gaps = sorted(stream.longest_gap_ms() for stream in seen)
        completed = sum(_DONE in stream.tail for stream in seen)
        cells.append(
            [
                name,
                f"{_STREAMS:,}",
                f"{completed:,}",
                f"{gaps[-1]:.0f}",
                f"{quantile(gaps, 0.99):.0f}",
                f"{(peak_mb - idle_mb) * 1024 / _STREAMS:.0f}",
            ]
        )
    return cells


async def _stream_all(server: Server, ids: Sequence[str]) -> tuple[list[Stream], float]:
    connections = [await ClientConnection.open(server.port) for _ in ids]
    seen = [Stream() for _ in ids]
    peak_mb = 0.0
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(connection.exchange(text_request(each, streams=True), stream.take))
            for connection, each, stream in zip(connections, ids, seen, strict=True)
        ]
        while not all(task.done() for task in running):
            await asyncio.sleep(0.5)
            peak_mb = max(peak_mb, memory_mb(server.pid))
    for connection in connections:
        connection.close()
    return seen, peak_mb


def followers(site: Site) -> Cells:
    """Measure the memory of followers of turns that wait for their provider."""
    cells = [["database", "followers", "KB each", "CPU of a core while idle"]]
    for name, database in (("PostgreSQL", site.database()), ("SQLite", None)):
        with site.server(database) as server:
            ids = ServerSessions(server.port).make("tokens-2-every-25000-ms", _FOLLOWED_TURNS)
            each_kb, share = asyncio.run(_follow_all(server, ids))
        cells.append([name, f"{_FOLLOWERS:,}", f"{each_kb:.0f}", f"{share:.0%}"])
    return cells


async def _follow_all(server: Server, ids: Sequence[str]) -> tuple[float, float]:
    turns: list[str] = []
    asking: list[asyncio.Task[int]] = []
    for session_id in ids:
        created = asyncio.get_running_loop().create_future()
        connection = await ClientConnection.open(server.port)
        request = text_request(session_id, streams=True)
        asking.append(
            asyncio.get_running_loop().create_task(
                connection.exchange(request, _turn_id_to(created))
            )
        )
        turns.append(await created)
    before_mb = memory_mb(server.pid)
    connections = [await ClientConnection.open(server.port) for _ in range(_FOLLOWERS)]
    following = [
        asyncio.get_running_loop().create_task(
            connection.exchange(get(f"/turns/{turns[number % len(turns)]}/events"), _ignore)
        )
        for number, connection in enumerate(connections)
    ]
    await asyncio.sleep(8)
    after_mb = memory_mb(server.pid)
    before = cpu_seconds(server.pid)
    await asyncio.sleep(4)
    share = (cpu_seconds(server.pid) - before) / 4
    for connection in connections:
        connection.close()
    await asyncio.gather(*following, *asking, return_exceptions=True)
    return (after_mb - before_mb) * 1024 / _FOLLOWERS, share


def _turn_id_to(created: "asyncio.Future[str]") -> Callable[[bytes], None]:
    def take(piece: bytes) -> None:
        if not created.done():
            created.set_result(orjson.loads(piece.split(b"data: ")[1].split(b"\n")[0])["turn_id"])

    return take


def processes(site: Site) -> Cells:
    """Measure how many turns one process carries, two of one server, and two servers."""
    cells = [["servers", "turns/s", "x one", "CPU of cores: servers", "database"]]
    once = 0.0
    for name, arguments, count in (
        ("one process", (), 1),
        ("two processes (`--workers 2`)", ("--workers", "2"), 1),
        ("two servers", (), 2),
    ):
        database = site.database()
        with ExitStack() as stack:
            servers = [stack.enter_context(site.server(database, *arguments)) for _ in range(count)]
            ids = ServerSessions(servers[0].port).make("tokens-20", 64)
            watched = [server.pid for server in servers]
            before = [sum(map(cpu_seconds, watched)), cpu_seconds(site.postgres.pid or 0)]
            ports = [server.port for server in servers]
            rate = asyncio.run(_hammer(ports, ids))
            after = [sum(map(cpu_seconds, watched)), cpu_seconds(site.postgres.pid or 0)]
        once = once or rate
        used = [
            f"{(later - sooner) / _SECONDS_OF_LOAD:.2f}"
            for sooner, later in zip(before, after, strict=True)
        ]
        cells.append([name, f"{rate:.0f}", f"{rate / once:.2f}", *used])
    return cells


async def _hammer(ports: Sequence[int], ids: Sequence[str]) -> float:
    done = 0
    end_at = time.perf_counter() + _SECONDS_OF_LOAD

    async def use(number: int, session_id: str) -> None:
        nonlocal done
        connection = await ClientConnection.open(ports[number % len(ports)])
        while time.perf_counter() < end_at:
            await connection.exchange(text_request(session_id), _ignore)
            done += 1
        connection.close()

    async with asyncio.TaskGroup() as tasks:
        for number, session_id in enumerate(ids):
            tasks.create_task(use(number, session_id))
    return done / _SECONDS_OF_LOAD


def _ignore(_piece: bytes) -> None:
    pass


_PARTS: dict[str, Callable[[Site], Cells]] = {
    "first-token": first_token,
    "history": history,
    "large": large,
    "streams": streams,
    "followers": followers,
    "processes": processes,
}


def main() -> int:
    """Run the parts that are named, or all; what they find is never an error."""
    parser = argparse.ArgumentParser(prog="bench.scale", description="Measure what grows.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(_PARTS))
    chosen = parser.parse_args().parts or list(_PARTS)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, ExitStack() as stack:
        site = Site(stack, Path(folder))
        for name in chosen:
            sys.stderr.write(f"bench: {name}\n")
            sys.stdout.write(f"{_PARTS[name].__doc__}\n\n{table(_PARTS[name](site))}\n\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
