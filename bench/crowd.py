"""Many connections at once: streams that receive tokens, and followers of waiting turns."""

import asyncio
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from bench.load import quantile
from bench.processes import Server, cpu_seconds, memory_mb
from bench.sessions import ServerSessions
from bench.site import DATABASES, Site
from bench.wire import ClientConnection, get, run, text_turn

Cells = list[list[str]]

_STREAMS = (100, 500, 1000, 2000)
_STREAM_MODEL = "tokens-60-every-50-ms"
_GIVE_UP_SECONDS = 90.0
_SETTLE_SECONDS = 2.0
_FOLLOWERS = 5000
_FOLLOWED_TURNS = 50
_AT_ONCE = 50
_FOLLOWED_MODEL = "tokens-2-every-60000-ms"
_IDLE_SECONDS = 5.0
_GAP_LIMIT_MS, _STREAM_LIMIT_KB, _FOLLOWER_LIMIT_KB = 500, 80, 40


@dataclass(slots=True)
class Stream:
    """The event stream of one turn as the client receives it."""

    begun_at: float = 0.0
    arrivals: list[float] = field(default_factory=list[float])
    """When each piece with text arrived."""
    ended_at: float = 0.0
    tail: bytes = b""

    def take(self, piece: bytes) -> None:
        """Record a received piece."""
        self.ended_at = time.perf_counter()
        if b"output_text.delta" in piece:
            self.arrivals.append(self.ended_at)
        self.tail = self.tail[-1000:] + piece

    @property
    def is_complete(self) -> bool:
        """True if the event `turn.completed` arrived."""
        return b"turn.completed" in self.tail

    def gaps_ms(self) -> list[float]:
        """Return the milliseconds between consecutive pieces of text."""
        return [(b - a) * 1000 for a, b in pairwise(self.arrivals)]


@dataclass(frozen=True, slots=True)
class Crowd:
    """The measurements of many streams at once."""

    streams: Sequence[Stream]
    seconds: float
    idle_mb: float
    peak_mb: float
    cpu: dict[str, float]
    """CPU-seconds of the server, the database, the provider and the client."""


def streams(site: Site) -> Cells:
    """Streams of 60 tokens, one every 50 ms, all started at once on one process."""
    cells = [
        ["database", "streams", "completed", "first token p50 s", "longest gap ms",
         "p99 of gaps ms", "end after last token p95 s", "KB each", "total s",
         "CPU-ms each: server", "database", "provider", "client",
         f"gap <= {_GAP_LIMIT_MS}", f"KB <= {_STREAM_LIMIT_KB}"],
    ]  # fmt: skip
    for name in DATABASES:
        for count in _STREAMS:
            with site.server(site.place(name)) as server:
                ids = ServerSessions(server.port).make("tokens-20", count, _STREAM_MODEL)
                cells.append([name, f"{count:,}", *_row(run(_stream_all(site, server, ids)))])
    return cells


def _row(crowd: Crowd) -> list[str]:
    streams, count = crowd.streams, len(crowd.streams)
    gaps = sorted(gap for stream in streams for gap in stream.gaps_ms())
    first = sorted(each.arrivals[0] - each.begun_at for each in streams if each.arrivals)
    ends = sorted(each.ended_at - each.arrivals[-1] for each in streams if each.arrivals)
    each_kb = (crowd.peak_mb - crowd.idle_mb) * 1024 / count
    longest = gaps[-1] if gaps else 0.0
    cpu = [f"{crowd.cpu[name] * 1000 / count:.1f}" for name in crowd.cpu]
    completed = sum(stream.is_complete for stream in streams)
    return [
        f"{completed:,}",
        f"{quantile(first, 0.5):.1f}",
        f"{longest:.0f}",
        f"{quantile(gaps, 0.99):.0f}",
        f"{quantile(ends, 0.95):.1f}",
        f"{each_kb:.0f}",
        f"{crowd.seconds:.1f}",
        *cpu,
        "yes" if longest <= _GAP_LIMIT_MS and completed == count else "NO",
        "yes" if each_kb <= _STREAM_LIMIT_KB else "NO",
    ]


async def _stream_all(site: Site, server: Server, ids: Sequence[str]) -> Crowd:
    _allow_many_connections()
    connections = [await ClientConnection.open(server.port) for _ in ids]
    streams = [Stream() for _ in ids]
    await asyncio.sleep(_SETTLE_SECONDS)
    idle_mb = peak_mb = memory_mb(server.pid)
    watched = {
        "server": server.pid,
        "database": site.postgres.pid or 0,
        "provider": site.provider.pid,
    }
    before = {name: cpu_seconds(pid) for name, pid in watched.items()}
    client_before, begun_at = time.process_time(), time.perf_counter()

    async def receive(connection: ClientConnection, session_id: str, stream: Stream) -> None:
        stream.begun_at = time.perf_counter()
        with suppress(ConnectionError):
            await connection.exchange(text_turn(session_id, streams=True), stream.take)

    running = {
        asyncio.ensure_future(receive(*each))
        for each in zip(connections, ids, streams, strict=True)
    }
    while running and time.perf_counter() - begun_at < _GIVE_UP_SECONDS:
        _, running = await asyncio.wait(running, timeout=0.5)
        peak_mb = max(peak_mb, memory_mb(server.pid))
    seconds = time.perf_counter() - begun_at
    cpu = {name: cpu_seconds(pid) - before[name] for name, pid in watched.items()}
    cpu["client"] = time.process_time() - client_before
    for connection in connections:
        connection.close()
    await asyncio.gather(*running, return_exceptions=True)
    return Crowd(streams, seconds, idle_mb, peak_mb, cpu)


def followers(site: Site) -> Cells:
    """5,000 clients that follow 50 turns whose provider sends nothing."""
    cells = [["database", "followers", "KB each", f"<= {_FOLLOWER_LIMIT_KB}", "share of a core"]]
    for name in DATABASES:
        with site.server(site.place(name)) as server:
            ids = ServerSessions(server.port).make("tokens-2", _FOLLOWED_TURNS, _FOLLOWED_MODEL)
            each_kb, share = run(_follow_all(server, ids))
        verdict = "yes" if each_kb <= _FOLLOWER_LIMIT_KB else "NO"
        cells.append([name, f"{_FOLLOWERS:,}", f"{each_kb:.0f}", verdict, f"{share:.1%}"])
    return cells


async def _follow_all(server: Server, ids: Sequence[str]) -> tuple[float, float]:
    """Return the memory per follower in KB, and the share of a core that all of them use."""
    _allow_many_connections()
    open_connections: list[ClientConnection] = []
    tasks: list[asyncio.Task[int]] = []

    async def begin(request: bytes, marker: bytes) -> bytes:
        """Send a request and return its first piece with `marker`; the stream stays open."""
        connection = await ClientConnection.open(server.port)
        open_connections.append(connection)
        received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        tasks.append(_spawn(connection.exchange(request, _first_match(received, marker))))
        return await asyncio.wait_for(received, 20)

    created = [await begin(text_turn(each, streams=True), b"turn.created") for each in ids]
    turns = [orjson.loads(each.split(b"data: ")[1].split(b"\n")[0])["turn_id"] for each in created]
    await asyncio.sleep(_SETTLE_SECONDS)
    before_mb = memory_mb(server.pid)
    for number in range(0, _FOLLOWERS, _AT_ONCE):
        followed = [turns[each % len(turns)] for each in range(number, number + _AT_ONCE)]
        await asyncio.gather(
            *(begin(get(f"/turns/{each}/events"), b"turn.created") for each in followed)
        )
    await asyncio.sleep(_SETTLE_SECONDS)
    after_mb, before = memory_mb(server.pid), cpu_seconds(server.pid)
    await asyncio.sleep(_IDLE_SECONDS)
    share = (cpu_seconds(server.pid) - before) / _IDLE_SECONDS
    for connection in open_connections:
        connection.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    return (after_mb - before_mb) * 1024 / _FOLLOWERS, share


def _spawn(exchange: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
    return asyncio.get_running_loop().create_task(exchange)


def _first_match(received: "asyncio.Future[bytes]", marker: bytes) -> Callable[[bytes], None]:
    def take(piece: bytes) -> None:
        if marker in piece and not received.done():
            received.set_result(piece)

    return take


def _allow_many_connections() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
