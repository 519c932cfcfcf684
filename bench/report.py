"""Formats measurements as Markdown tables, and compares them with `budget.json`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.load import Result
from bench.starts import Start

_BUDGET = Path(__file__).parent / "budget.json"

FLOOR, SERVER, PROVIDER, DATABASE = "floor", "server", "provider", "database"


@dataclass(frozen=True, slots=True)
class Row:
    """The measurements of one target with one kind of turn; several results are summed."""

    key: str
    """The name in `budget.json`; empty for the floor, which has no budget."""
    target: str
    results: Sequence[Result]

    @property
    def is_floor(self) -> bool:
        """True for the hand-written server of `bench.floor`."""
        return not self.key

    @property
    def turns(self) -> int:
        """The number of completed turns."""
        return sum(result.turns for result in self.results)

    @property
    def failures(self) -> int:
        """The number of turns that failed."""
        return sum(result.failures for result in self.results)

    @property
    def seconds(self) -> float:
        """The duration of the load in seconds."""
        return sum(result.seconds for result in self.results)

    def cpu_ms(self, process: str) -> float:
        """Return the CPU of a process per turn in milliseconds; 0 if it was not measured."""
        total = sum(result.cpu_seconds.get(process, 0.0) for result in self.results)
        return total * 1000 / max(1, self.turns)

    def latency_ms(self, quantile: str) -> float:
        """Return the mean of the results' `p50_ms` or `p95_ms`."""
        values: list[float] = [getattr(result, quantile) for result in self.results]
        return sum(values) / len(values)

    def busy_share(self, process: str) -> float:
        """Return the share of one core that a process used."""
        return self.cpu_ms(process) * self.turns / 1000 / self.seconds

    def load_share(self) -> float:
        """Return the share of one core that the load generator used."""
        return sum(result.own_cpu_seconds for result in self.results) / self.seconds


def with_floors(rows: Sequence[Row]) -> Iterator[tuple[Row, float]]:
    """Yield each row with the ratio of its CPU to that of its floor, the last one above it."""
    floor_ms = rows[0].cpu_ms(SERVER)
    for row in rows:
        if row.is_floor:
            floor_ms = row.cpu_ms(SERVER)
        yield row, row.cpu_ms(SERVER) / floor_ms


def turns_table(kinds: Mapping[str, Sequence[Row]]) -> str:
    """Return a table with the rows of each kind of turn; a server's floor is above it."""
    cells = [["turn", "target", "CPU-ms", "x floor", "p50 ms", "p95 ms", "turns/s", "db CPU-ms"]]
    for kind, rows in kinds.items():
        for row, times_floor in with_floors(rows):
            database_ms = row.cpu_ms(DATABASE)
            cells.append([
                kind,
                row.target,
                f"{row.cpu_ms(SERVER):.2f}",
                f"{times_floor:.1f}",
                f"{row.latency_ms('p50_ms'):.1f}",
                f"{row.latency_ms('p95_ms'):.1f}",
                f"{row.turns / row.seconds:.0f}",
                f"{database_ms:.2f}" if database_ms else "",
            ])  # fmt: skip
    return table(cells)


def starts_table(starts: Mapping[str, Start]) -> str:
    """Return a table of each server's start time and idle memory; values are medians."""
    cells = [["start", "to ready, s", "CPU, s", "idle memory, MB"]]
    for name, start in starts.items():
        cells.append([
            name,
            f"{start.seconds:.2f}",
            f"{start.cpu_seconds:.2f}",
            f"{start.idle_memory_mb:.0f}",
        ])  # fmt: skip
    return table(cells)


def helpers_line(kinds: Mapping[str, Sequence[Row]], alone: Result) -> str:
    """Return a sentence that shows whether the provider or the load generator were the limit.

    `alone` is the result of requests sent directly to the provider.
    """
    rows = [row for rows in kinds.values() for row in rows]
    provider = max(row.busy_share(PROVIDER) for row in rows)
    cost_ms = max(row.cpu_ms(PROVIDER) for row in rows)
    load = max(row.load_share() for row in rows)
    failures = sum(row.failures for row in rows)
    return (
        f"The provider was idle for at least {1 - provider:.0%} of a core's time "
        f"({cost_ms:.2f} CPU-ms per turn at most), the load generator for {1 - load:.0%}; "
        f"{failures} turns failed. Without a server, the provider served "
        f"{alone.turns / alone.seconds:.0f} responses/s at "
        f"{alone.cpu_seconds[PROVIDER] * 1000 / max(1, alone.turns):.3f} CPU-ms; the highest rate "
        f"of turns was {max(row.turns / row.seconds for row in rows):.0f}/s."
    )


def budget_table(measured: Mapping[str, float]) -> str:
    """Return a table of the measurements that have a budget, with the difference to it."""
    budget: dict[str, float] = orjson.loads(_BUDGET.read_bytes())
    cells = [["measure", "measured", "budget", "difference"]]
    for name, allowed in budget.items():
        if name in measured:
            difference = (measured[name] - allowed) / allowed
            verdict = "OVER" if difference > 0 else ""
            shown = f"{difference:+.0%} {verdict}".strip()
            cells.append([name, f"{measured[name]:.2f}", f"{allowed:g}", shown])
    return table(cells)


def table(cells: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table; the first row is the header."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])
