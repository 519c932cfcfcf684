"""`python -m bench.scale [PART ...]`: measure how costs grow with size and load.

Parts: `first-token`, `history` (sessions of 10 to 100,000 messages), `large` (a million messages),
`streams` (2,000 at once), `followers` (5,000 clients of waiting turns), `processes` (one process,
two workers, two servers), `storage` (bytes and WAL per turn), `tools` (the own share of a step with
a tool), and `dialects` (of other APIs). Linux only; it needs PostgreSQL's executables. Each part
takes at most a few minutes.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import orjson

from bench import capacity, crowd, dialects, growth, storage, tools
from bench.load import quantile
from bench.processes import Server
from bench.report import table
from bench.sessions import ServerSessions, make_floor_sessions
from bench.site import DATABASES, Site
from bench.wire import ClientConnection, post, run, text_turn

Cells = list[list[str]]

_FIRST_TOKENS = 220
_WARM_UP = 20
_SESSIONS = 10
_MODEL = "tokens-2-every-10-ms"
_PROVIDERS_TOKEN, _OUR_TOKEN = b'"content":" the"', b"output_text.delta"
_P50_LIMIT_MS, _P95_LIMIT_MS = 4, 12


def first_token(site: Site) -> Cells:
    """Latency added to the provider's first token, one turn at a time, without the provider's time.

    The floor is the hand-written server of `bench.floor`.
    """
    cells = [
        ["server", "p50 ms", f"<= {_P50_LIMIT_MS}", "p95 ms", f"<= {_P95_LIMIT_MS}", "p50 x floor"]
    ]
    body = orjson.dumps({"model": _MODEL, "messages": [], "stream": True})
    request = post("/v1/chat/completions", body)
    provider_times = run(_first_tokens(site.provider.port, [request], _PROVIDERS_TOKEN))
    provider_p50 = quantile(provider_times, 0.5)
    floor_p50 = 0.0
    for name, server, requests in _first_token_servers(site):
        with server:
            times = run(_first_tokens(server.port, requests(server), _OUR_TOKEN))
        p50, p95 = quantile(times, 0.5) - provider_p50, quantile(times, 0.95) - provider_p50
        floor_p50 = floor_p50 or p50
        verdicts = [
            "yes" if p50 <= _P50_LIMIT_MS else "NO",
            "yes" if p95 <= _P95_LIMIT_MS else "NO",
        ]
        if name == "floor":
            verdicts = ["", ""]
        cells.append(
            [name, f"{p50:.2f}", verdicts[0], f"{p95:.2f}", verdicts[1], f"{p50 / floor_p50:.1f}"]
        )
    return cells


_Requests = Callable[[Server], Sequence[bytes]]


def _first_token_servers(site: Site) -> Iterator[tuple[str, Server, _Requests]]:
    sessions = make_floor_sessions(site.postgres, "floor", _SESSIONS)
    yield (
        "floor",
        site.floor("floor"),
        lambda _: [text_turn(each, streams=True, model=_MODEL) for each in sessions],
    )
    for name in DATABASES:
        yield (
            name,
            site.server(site.place(name)),
            lambda server: [
                text_turn(each, streams=True)
                for each in ServerSessions(server.port).make(_MODEL, _SESSIONS)
            ],
        )


async def _first_tokens(port: int, requests: Sequence[bytes], token: bytes) -> list[float]:
    """Return the milliseconds until the first `token` of each exchange, sorted."""
    connection = await ClientConnection.open(port)
    times: list[float] = []

    def take(piece: bytes) -> None:
        if len(times) <= number and token in piece:
            times.append((time.perf_counter() - sent_at) * 1000)

    for number in range(_FIRST_TOKENS):
        sent_at = time.perf_counter()
        await connection.exchange(requests[number % len(requests)], take)
    connection.close()
    return sorted(times[_WARM_UP:])


_PARTS: dict[str, Callable[[Site], Cells]] = {
    "first-token": first_token,
    "history": growth.history,
    "large": growth.large,
    "streams": crowd.streams,
    "followers": crowd.followers,
    "processes": capacity.processes,
    "storage": storage.storage,
    "tools": tools.step,
    "dialects": dialects.dialects,
}


def main() -> int:
    """Run the named parts, or all; the exit status does not depend on the measurements."""
    parser = argparse.ArgumentParser(
        prog="bench.scale", description="Measure how costs grow with size and load."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"one of {', '.join(_PARTS)} (default: all)"
    )
    chosen = parser.parse_args().parts or list(_PARTS)
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, ExitStack() as stack:
        site = Site(stack, Path(folder))
        for name in chosen:
            sys.stderr.write(f"bench: {name}\n")
            title = " ".join((_PARTS[name].__doc__ or "").split())
            sys.stdout.write(f"{title}\n\n{table(_PARTS[name](site))}\n\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
