"""`python -m bench [--quick]`: measure the CPU, memory and latency of turns, and print tables.

Linux only, since CPU and memory are read from `/proc`. It needs PostgreSQL's executables.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from bench import report, starts
from bench.drawing import draw
from bench.load import Job, Result
from bench.processes import ROOT, Server, free_port, memory_mb
from bench.report import Row
from bench.sessions import (
    TURNS_PER_SESSION,
    ServerSessions,
    make_floor_sessions,
    make_sqlite_floor_sessions,
)
from bench.starts import Start
from tests.support.postgres import PostgresServer

_CONNECTIONS = 16
_LIMITS = {
    "LIMIT_REQUESTS_PER_MINUTE": "1000000000",
    "LIMIT_CONCURRENT_TURNS": "1000000000",
    "LIMIT_TOKENS_PER_DAY": "1000000000",
    "LIMIT_USD_PER_DAY": "1000000",
}
"""Limits that are never reached, but whose checks are measured."""
_PROVIDER_ROUNDS = 100
_CHART = ROOT / "docs" / "performance.svg"
_FLOOR_DATABASE, _SERVER_DATABASE = "floor", "server"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of turn: its name, its key in `budget.json`, the provider's model, and streaming."""

    name: str
    key: str
    model: str
    streams: bool


_TEXT = Kind("text", "text_turn", "tokens-20", streams=False)
_STREAM = Kind("stream, 20 tokens at once", "stream", "tokens-20", streams=True)
_PACED = Kind("stream, a token each 10 ms", "paced_stream", "tokens-20-every-10-ms", streams=True)


@dataclass(frozen=True, slots=True)
class Effort:
    """The amount of work in a run."""

    kinds: Sequence[Kind]
    warm_up_turns: int
    server_sessions: int
    floor_sessions: int
    starts: int
    give_up_seconds: float


_FULL = Effort((_TEXT, _STREAM, _PACED), 80, 200, 800, 5, 10)
_QUICK = Effort((_TEXT, _STREAM), 32, 24, 200, 1, 4)


@dataclass(slots=True)
class Findings:
    """The measurements so far."""

    rows: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])
    provider: list[Result] = field(default_factory=list[Result])
    """Results of requests sent directly to the provider."""
    starts: dict[str, Start] = field(default_factory=dict[str, Start])
    """Medians for each server; the floors first."""
    process: dict[str, float] = field(default_factory=dict[str, float])
    """Further measurements of processes, by their name in `budget.json`."""

    def add(self, kind: Kind, row: Row) -> None:
        """Add a row, or add its results to the existing row of the same target."""
        rows = self.rows.setdefault(kind.name, [])
        for number, existing in enumerate(rows):
            if existing.target == row.target:
                rows[number] = Row(row.key, row.target, [*existing.results, *row.results])
                return
        rows.append(row)


class Bench:
    """One run of the benchmark, which starts and stops one server after the other."""

    def __init__(
        self, effort: Effort, folder: Path, postgres: PostgresServer, provider: Server
    ) -> None:
        self.findings = Findings()
        self._effort = effort
        self._folder = folder
        self._postgres = postgres
        self._provider = provider

    def run(self) -> None:
        """Measure everything.

        Each floor is measured before and after the server, so that the machine's noise affects
        both alike.
        """
        count = self._effort.floor_sessions
        sessions = make_floor_sessions(self._postgres, _FLOOR_DATABASE, count)
        self._postgres.create_database(_SERVER_DATABASE)
        url = self._postgres.url(_FLOOR_DATABASE)
        on_postgres = {"DATABASE_URL": self._postgres.url(_SERVER_DATABASE)}
        self._measure_starts(url, on_postgres)
        with self._floor("floor", url) as floor:
            self._measure_floor("floor, Postgres", floor, sessions)
            self._measure_server("Postgres", "postgres", on_postgres)
            self._measure_floor("floor, Postgres", floor, sessions)
        file = self._folder / "floor.db"
        make_sqlite_floor_sessions(file, count)
        with self._floor("floor-sqlite", str(file)) as floor:
            self._measure_floor("floor, SQLite", floor, sessions)
            self._measure_server("SQLite", "sqlite", {})
            self._measure_floor("floor, SQLite", floor, sessions)
        _log("the provider alone")
        first_sessions = sessions[: self._effort.warm_up_turns]
        result = self._load(
            _TEXT,
            self._provider,
            first_sessions,
            _PROVIDER_ROUNDS,
            model=_TEXT.model,
            marker="[DONE]",
        )
        self.findings.provider.append(result)
        _log("the command line")
        self.findings.process["cli_help_seconds"] = _help_seconds()

    def _measure_starts(self, floor_database: str, on_postgres: Mapping[str, str]) -> None:
        """Measure starts of every server; ours is started once before, for its migrations."""
        databases: dict[str, Mapping[str, str]] = {"postgres": on_postgres, "sqlite": {}}
        for key, database in databases.items():
            with self._server(self._folder / key, database) as server:
                self.findings.process[f"first_start_{key}_seconds"] = server.start_seconds

        def framework() -> Server:
            port = free_port()
            return Server(
                ["bench.framework", str(port)], port, self._folder / "framework-starts", {}
            )

        _log("starts")
        self.findings.starts = starts.measure(
            {
                "floor": lambda: self._floor("floor-starts", floor_database),
                "FastAPI and uvicorn": framework,
                "server, Postgres": lambda: self._server(self._folder / "postgres", on_postgres),
                "server, SQLite": lambda: self._server(self._folder / "sqlite", {}),
            },
            self._effort.starts,
        )

    def _floor(self, folder: str, database: str) -> Server:
        port = free_port()
        arguments = ["bench.floor", str(port), database, str(self._provider.port)]
        return Server(arguments, port, self._folder / folder, {})

    def _measure_floor(self, target: str, server: Server, sessions: Sequence[str]) -> None:
        warm_up = sessions[: self._effort.warm_up_turns]
        for kind in self._effort.kinds:
            _log(f"{target}: {kind.name}")
            self._load(kind, server, warm_up, 1, model=kind.model)
            result = self._load(kind, server, sessions, TURNS_PER_SESSION, model=kind.model)
            self.findings.add(kind, Row("", target, [result]))

    def _measure_server(self, name: str, key: str, database: Mapping[str, str]) -> None:
        with self._server(self._folder / key, database) as server:
            for kind in self._effort.kinds:
                _log(f"server on {name}: {kind.name}")
                warm_up, sessions = self._server_sessions(server, kind)
                self._load(kind, server, warm_up, 1)
                result = self._load(kind, server, sessions, TURNS_PER_SESSION)
                row = Row(f"{kind.key}_{key}", f"server, {name}", [result])
                self.findings.add(kind, row)
            self.findings.process[f"memory_after_load_{key}_mb"] = memory_mb(server.pid)

    def _server_sessions(self, server: Server, kind: Kind) -> tuple[list[str], list[str]]:
        """Create sessions; return those for the warm-up and those for the measurement."""
        count = self._effort.warm_up_turns
        ids = ServerSessions(server.port).make(kind.model, count + self._effort.server_sessions)
        return ids[:count], ids[count:]

    def _server(self, folder: Path, database: Mapping[str, str]) -> Server:
        """Return our server, to be started as users start it, without the embedded engine."""
        port = free_port()
        settings = {
            **_LIMITS,
            "DATA_DIR": str(folder),
            "PORT": str(port),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self._provider.port}/v1",
            "OPENAI_API_KEY": "not-checked",
            **database,
        }
        return Server(["app.cli", "serve"], port, folder, settings)

    def _load(  # noqa: PLR0913  # a job's fields
        self,
        kind: Kind,
        server: Server,
        sessions: Sequence[str],
        rounds: int,
        *,
        model: str | None = None,
        marker: str | None = None,
    ) -> Result:
        watched = {report.SERVER: server.pid, report.PROVIDER: self._provider.pid}
        if self._postgres.pid:
            watched[report.DATABASE] = self._postgres.pid
        job = Job(
            port=server.port,
            sessions=list(sessions),
            rounds=rounds,
            streams=kind.streams,
            connections=_CONNECTIONS,
            give_up_seconds=self._effort.give_up_seconds,
            watched_pids=watched,
            model=model,
            marker=marker,
        )
        completed = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            input=orjson.dumps(asdict(job)),
            stdout=subprocess.PIPE,
            cwd=ROOT,
            check=True,
        )
        return Result(**orjson.loads(completed.stdout))


def _help_seconds() -> float:
    """Return the seconds that `python -m app.cli --help` takes, the best of five runs."""
    command = [sys.executable, "-m", "app.cli", "--help"]

    def once() -> float:
        started_at = time.perf_counter()
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)  # noqa: S603
        return time.perf_counter() - started_at

    return min(once() for _ in range(5))


def _measured(findings: Findings) -> dict[str, float]:
    """Return every measurement that a budget may name; of two databases, the worse."""
    measured = dict(findings.process)
    starts = [start for name, start in findings.starts.items() if name.startswith("server")]
    measured["idle_memory_mb"] = max(start.idle_memory_mb for start in starts)
    measured["start_seconds"] = max(start.seconds for start in starts)
    for rows in findings.rows.values():
        for row, times_floor in report.with_floors(rows):
            if not row.is_floor:
                measured[f"{row.key}_cpu_ms"] = row.cpu_ms(report.SERVER)
                measured[f"{row.key}_x_floor"] = times_floor
    return measured


def _print(findings: Findings) -> None:
    process = [[name, f"{value:.2f}"] for name, value in sorted(findings.process.items())]
    parts = [
        report.turns_table(findings.rows),
        report.helpers_line(findings.rows, findings.provider[0]),
        report.starts_table(findings.starts),
        report.table([["process", "measured"], *process]),
        report.budget_table(_measured(findings)),
    ]
    sys.stdout.write("\n\n".join(parts) + "\n")


def _log(message: str) -> None:
    sys.stderr.write(f"bench: {message}\n")


def main() -> int:
    """Run the benchmark; the exit status does not depend on what it measures."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Measure the CPU, memory and latency of turns."
    )
    parser.add_argument(
        "--quick", action="store_true", help="take about a minute, with less precise results"
    )
    options = parser.parse_args()
    effort = _QUICK if options.quick else _FULL
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        provider = Server(["bench.provider", str(port)], port, folder / "provider", {})
        with PostgresServer() as postgres, provider:
            bench = Bench(effort, folder, postgres, provider)
            bench.run()
    _print(bench.findings)
    if not options.quick:  # a quick run is too imprecise for the chart
        _CHART.write_text(draw(bench.findings.rows))
        _log(f"wrote {_CHART.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
