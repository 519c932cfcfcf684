"""`python -m bench.scale [PART ...]`: what grows, and what must not.

Parts: `first-token`, `history` (sessions of 10 to 100,000 messages), `large` (a million messages),
`streams` (2,000 at once), `followers` (5,000 of turns that say nothing), `processes` (one, two
workers, two servers), and `storage` (bytes and WAL of a turn). Linux only; it needs PostgreSQL's
programs. Each part ends by itself within a few minutes.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import capacity, crowd, growth, storage
from bench.load import quantile
from bench.report import table
from bench.sessions import ServerSessions
from bench.site import DATABASES, Site
from bench.wire import ClientConnection, run, text_turn

Cells = list[list[str]]

_FIRST_TOKENS = 220
_WARM_UP = 20
_PACE_MS = 10
_P50_LIMIT_MS, _P95_LIMIT_MS = 4, 12


def first_token(site: Site) -> Cells:
    """What we add to the first token, one turn at a time, with a provider of no latency."""
    cells = [["database", "p50 ms", f"<= {_P50_LIMIT_MS}", "p95 ms", f"<= {_P95_LIMIT_MS}"]]
    for name in DATABASES:
        with site.server(site.place(name)) as server:
            ids = ServerSessions(server.port).make(f"tokens-20-every-{_PACE_MS}-ms", 10)
            taken = run(_first_tokens(server.port, ids))
        p50, p95 = quantile(taken, 0.5), quantile(taken, 0.95)
        verdicts = [
            "yes" if p50 <= _P50_LIMIT_MS else "NO",
            "yes" if p95 <= _P95_LIMIT_MS else "NO",
        ]
        cells.append([name, f"{p50:.2f}", verdicts[0], f"{p95:.2f}", verdicts[1]])
    return cells


async def _first_tokens(port: int, ids: Sequence[str]) -> list[float]:
    connection = await ClientConnection.open(port)
    taken: list[float] = []
    for number in range(_FIRST_TOKENS):
        stream = crowd.Stream()
        sent_at = time.perf_counter()
        request = text_turn(ids[number % len(ids)], streams=True)
        await connection.exchange(request, stream.take)
        taken.append((stream.arrivals[0] - sent_at) * 1000)
    connection.close()
    # The provider's first token comes one step after its empty first chunk.
    return sorted(max(0.0, each - _PACE_MS) for each in taken[_WARM_UP:])


_PARTS: dict[str, Callable[[Site], Cells]] = {
    "first-token": first_token,
    "history": growth.history,
    "large": growth.large,
    "streams": crowd.streams,
    "followers": crowd.followers,
    "processes": capacity.processes,
    "storage": storage.storage,
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
            told = " ".join((_PARTS[name].__doc__ or "").split())
            sys.stdout.write(f"{told}\n\n{table(_PARTS[name](site))}\n\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
