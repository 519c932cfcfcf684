"""The load generator: sends turns over keep-alive connections and measures their latencies.

`python -m bench.load` reads a `Job` as JSON from standard input and writes a `Result` as JSON to
standard output. It is a process of its own, so that its CPU is not counted with another's.
"""

import asyncio
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice

import orjson

from bench.processes import cpu_seconds
from bench.wire import ClientConnection, post, run

_QUESTION = "What happened then, and what do you make of all that so far?"


@dataclass(frozen=True, slots=True)
class Job:
    """The turns to send. Sessions are used in order, `rounds` times, never two turns at once."""

    port: int
    sessions: list[str]
    rounds: int
    streams: bool
    connections: int
    give_up_seconds: float
    watched_pids: dict[str, int]
    """Processes whose CPU is measured during the run, by name."""
    model: str | None = None
    """The model in each request, for the floor and the provider, which have no agents."""
    marker: str | None = None
    """A text that successful responses contain, if they are not those of a turn."""


@dataclass(frozen=True, slots=True)
class Result:
    """The measurements of a job. Latencies are of whole turns, in milliseconds."""

    turns: int
    failures: int
    seconds: float
    p50_ms: float
    p95_ms: float
    cpu_seconds: dict[str, float]
    own_cpu_seconds: float


class _Load:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._requests = self._make_requests()
        self._give_up_at = math.inf
        marker = "turn.completed" if job.streams else '"status":"completed"'
        self._completed = (job.marker or marker).encode()
        self.latencies_ms: list[float] = []
        self.failures = 0

    async def run(self) -> Result:
        job = self._job
        connections = [await ClientConnection.open(job.port) for _ in range(job.connections)]
        before = self._watched()
        load_before = time.process_time()
        started_at = time.perf_counter()
        self._give_up_at = started_at + job.give_up_seconds
        async with asyncio.TaskGroup() as tasks:
            for connection in connections:
                tasks.create_task(self._use(connection))
        seconds = time.perf_counter() - started_at
        after = self._watched()
        ordered = sorted(self.latencies_ms)
        return Result(
            turns=len(ordered),
            failures=self.failures,
            seconds=seconds,
            p50_ms=quantile(ordered, 0.5),
            p95_ms=quantile(ordered, 0.95),
            cpu_seconds={name: after[name] - before[name] for name in before},
            own_cpu_seconds=time.process_time() - load_before,
        )

    async def _use(self, connection: ClientConnection) -> None:
        pieces: list[bytes] = []
        for request in self._requests:
            sent_at = time.perf_counter()
            if sent_at > self._give_up_at:
                return
            pieces.clear()
            status = await connection.exchange(request, pieces.append)
            if status == 200 and self._completed in b"".join(pieces):  # noqa: PLR2004  # OK
                self.latencies_ms.append((time.perf_counter() - sent_at) * 1000)
            else:
                self.failures += 1
        connection.close()

    def _make_requests(self) -> Iterator[bytes]:
        """Return an iterator of all requests, from which every connection takes its next one."""
        job = self._job
        headers = ["Accept: text/event-stream"] if job.streams else []
        prepared: list[bytes] = []
        for session in job.sessions:
            body = {"session_id": session, "content": _QUESTION}
            if job.model:
                body["model"] = job.model
            prepared.append(post("/messages/text", orjson.dumps(body), *headers))
        return (request for _ in range(job.rounds) for request in prepared)

    def _watched(self) -> dict[str, float]:
        return {name: cpu_seconds(pid) for name, pid in self._job.watched_pids.items()}


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which `share` of the sorted values are."""
    return next(islice(ordered, int(len(ordered) * share), None), math.nan)


async def _main() -> None:
    job = Job(**orjson.loads(sys.stdin.buffer.read()))
    result = await _Load(job).run()
    os.write(1, orjson.dumps(asdict(result)))


if __name__ == "__main__":
    run(_main())
