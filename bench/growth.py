"""The cost of requests in long sessions and large databases, compared with short and small ones.

The compared cases are measured alternately, in blocks of requests, so that the machine's noise
affects all of them alike.
"""

import asyncio
import base64
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice

from bench.load import quantile
from bench.processes import Server, cpu_seconds
from bench.sessions import ServerSessions
from bench.site import DATABASES, Site
from bench.wire import ClientConnection, get, run, text_turn

Cells = list[list[str]]

_HISTORIES = (10, 1000, 100_000)
_LOADED = (10, 1000)
_BLOCKS, _BLOCK = 16, 8
_LARGE_SESSIONS, _LARGE_MESSAGES = 50_000, 20
_HISTORY_LIMIT, _P95_LIMIT = 1.15, 2.0


@dataclass(slots=True)
class Case:
    """Requests that are measured together, and their measurements."""

    server: Server
    requests: Sequence[bytes]
    latencies_ms: list[float] = field(default_factory=list[float])
    cpu_ms: list[float] = field(default_factory=list[float])
    """The server's CPU per request: the mean of each block."""

    def latency_ms(self, share: float) -> float:
        """Return a quantile of the latencies."""
        return quantile(sorted(self.latencies_ms), share)

    def cost_ms(self) -> float:
        """Return the server's CPU per request: the median of the blocks."""
        return statistics.median(self.cpu_ms)


async def alternate(cases: Sequence[Case], at_once: int = 1) -> None:
    """Send a block of each case's requests in turn; the first blocks are the warm-up.

    Each case has `at_once` connections, which send a block each.
    """
    connections = [
        [await ClientConnection.open(case.server.port) for _ in range(at_once)] for case in cases
    ]
    sources = [cycle(case.requests) for case in cases]
    for number in range(_BLOCKS + 1):
        for case, own, source in zip(cases, connections, sources, strict=True):
            before = cpu_seconds(case.server.pid)
            times = await asyncio.gather(*(_block(each, source) for each in own))
            if number:
                case.latencies_ms += (each for block in times for each in block)
                used_ms = (cpu_seconds(case.server.pid) - before) * 1000
                case.cpu_ms.append(used_ms / _BLOCK / at_once)
    for connection in (each for own in connections for each in own):
        connection.close()


async def _block(connection: ClientConnection, source: Iterator[bytes]) -> list[float]:
    """Send a block of requests; return the milliseconds that each took."""
    times: list[float] = []
    for request in islice(source, _BLOCK):
        sent_at = time.perf_counter()
        status = await connection.exchange(request, _ignore)
        if status != 200:  # noqa: PLR2004  # OK
            raise RuntimeError(f"HTTP {status}")
        times.append((time.perf_counter() - sent_at) * 1000)
    return times


def _kinds(ids: Sequence[str], messages: int) -> dict[str, list[bytes]]:
    """Return requests of each kind for sessions of `messages` messages."""
    last = base64.urlsafe_b64encode(max(0, messages - 10).to_bytes(8, "big")).decode().rstrip("=")
    return {
        "text turn": [text_turn(each) for each in ids],
        "stream": [text_turn(each, streams=True) for each in ids],
        "first page of messages": [get(f"/sessions/{each}/messages?limit=10") for each in ids],
        "last page of messages": [
            get(f"/sessions/{each}/messages?limit=10&cursor={last}") for each in ids
        ],
        "list of sessions": [get("/sessions?limit=20")],
    }


def history(site: Site) -> Cells:
    """Sessions of 10, 1,000 and 100,000 messages: CPU-ms and p50 compared with the shortest.

    The first turn of a session on a server loads up to 200 messages, later turns load two.
    """
    cells = [
        ["database", "request", "messages", "CPU-ms", "x", "p50 ms", "x", f"<= {_HISTORY_LIMIT}"]
    ]
    for name in DATABASES:
        place = site.place(name)
        with site.server(place) as server:
            like = ServerSessions(server.port).make("tokens-20", 1)[0]
            filled = {count: place.fill(like, 8, count) for count in _HISTORIES}
            kinds = {count: _kinds(ids, count) for count, ids in filled.items()}
            for kind in kinds[_HISTORIES[0]]:
                cases = {count: Case(server, kinds[count][kind]) for count in _HISTORIES}
                run(alternate(list(cases.values())))
                labelled = {f"{count:,}": case for count, case in cases.items()}
                cells += compare(name, kind, labelled, _is_flat)
            # Each session is used once, so that its history is loaded and not cached.
            count = (_BLOCKS + 1) * _BLOCK
            first = {
                f"{messages:,}": Case(
                    server, [text_turn(each) for each in place.fill(like, count, messages)]
                )
                for messages in _LOADED
            }
            run(alternate(list(first.values())))
            cells += compare(name, "first text turn of a session", first, _is_flat)
    return cells


def large(site: Site) -> Cells:
    """A database of 1,000,000 messages in 50,000 sessions compared with a small one, at p95."""
    cells = [["database", "request", "size", "CPU-ms", "x", "p95 ms", "x", f"<= {_P95_LIMIT}"]]
    for name in DATABASES:
        with ExitStack() as stack:
            kinds: dict[str, dict[str, list[bytes]]] = {}
            servers: dict[str, Server] = {}
            for size, sessions in (("small", 50), ("large", _LARGE_SESSIONS)):
                place = site.place(name)
                servers[size] = server = stack.enter_context(site.server(place))
                like = ServerSessions(server.port).make("tokens-20", 1)[0]
                ids = place.fill(like, sessions, _LARGE_MESSAGES)
                kinds[size] = _kinds(ids[:: max(1, sessions // 200)], _LARGE_MESSAGES)
            for kind in kinds["small"]:
                cases = {size: Case(servers[size], kinds[size][kind]) for size in servers}
                run(alternate(list(cases.values())))
                cells += compare(name, kind, cases, _is_quick, share=0.95)
    return cells


def compare(
    database: str,
    kind: str,
    cases: Mapping[str, Case],
    is_within_limit: Callable[[float, float], bool],
    share: float = 0.5,
) -> Cells:
    """Return a row for each case, compared with the first one."""
    first = next(iter(cases.values()))
    cells: Cells = []
    for label, case in cases.items():
        cpu_ratio = case.cost_ms() / first.cost_ms()
        time_ratio = case.latency_ms(share) / first.latency_ms(share)
        is_good = is_within_limit(cpu_ratio, time_ratio)
        verdict = "" if case is first else "yes" if is_good else "NO"
        numbers = [case.cost_ms(), cpu_ratio, case.latency_ms(share), time_ratio]
        cells.append([database, kind, label, *(f"{each:.2f}" for each in numbers), verdict])
    return cells


def _is_flat(cpu_ratio: float, time_ratio: float) -> bool:
    return min(cpu_ratio, time_ratio) <= _HISTORY_LIMIT


def _is_quick(_cpu_ratio: float, time_ratio: float) -> bool:
    return time_ratio <= _P95_LIMIT


def _ignore(_piece: bytes) -> None:
    pass
