"""What is read at the moment when somebody asks for the metrics."""

from collections.abc import Mapping
from typing import Protocol

from app.core.capabilities import Capability
from app.core.database import Database
from app.core.database.revision import REVISION
from app.services.identity import OpenStreamRegistry
from app.services.resilience import CircuitBreakers
from app.services.turns import TurnEngine
from app.services.turns.engine import LIVE_TURNS_LIMIT
from app.services.usage import RequestLimiter
from app.telemetry.instruments import Labels
from app.telemetry.metrics import Metrics


class EmbeddedEngine(Protocol):
    """The embedded engine's worker process, as far as it is watched."""

    @property
    def is_ready(self) -> bool:
        """True while every model is loaded."""
        ...

    @property
    def worker_pid(self) -> int | None:
        """`None` while there is no worker."""
        ...


class ForeignBytesWorker(Protocol):
    """The worker process that reads foreign bytes, and its jobs, as far as they are watched."""

    restarts: int

    @property
    def worker_pid(self) -> int | None:
        """`None` while there is no worker; the first job starts it."""
        ...

    @property
    def is_ready(self) -> bool:
        """True while the worker takes jobs."""
        ...

    @property
    def running_count(self) -> int:
        """How many jobs the worker has in hand."""
        ...

    @property
    def waiting_count(self) -> int:
        """How many jobs wait."""
        ...


def add_gauges(  # noqa: PLR0913  # a part each
    metrics: Metrics,
    *,
    turns: TurnEngine,
    database: Database,
    open_streams: OpenStreamRegistry,
    request_limiter: RequestLimiter,
    breakers: Mapping[Capability, CircuitBreakers],
    engine: EmbeddedEngine | None,
    sandbox: ForeignBytesWorker,
    documents: ForeignBytesWorker,
) -> None:
    """Let the metrics tell of each part of a running server."""
    metrics.add_build_info(REVISION)
    metrics.add_gauge(
        "live_turns",
        "Turns that run or wait in this process.",
        ("status",),
        lambda: _labelled(turns.turn_counts()),
    )

    def registers() -> dict[Labels, float]:
        sizes = {
            **turns.register_sizes(),
            "event_streams": open_streams.stream_count,
            "stream_callers": open_streams.caller_count,
            "request_limits": request_limiter.window_count,
        }
        return _labelled(sizes)

    metrics.add_gauge(
        "register_size", "What this process remembers, by register.", ("register",), registers
    )
    metrics.add_gauge(
        "register_limit",
        "Size at which a register is full, and readiness says so.",
        ("register",),
        lambda: {("turns",): LIVE_TURNS_LIMIT},
    )
    metrics.add_gauge(
        "event_streams", "Event streams that are open.", (), lambda: {(): open_streams.stream_count}
    )
    metrics.add_gauge(
        "draining", "1 while the server shuts down.", (), lambda: {(): turns.is_draining}
    )
    metrics.add_gauge(
        "provider_breaker_open",
        "1 while a provider is left alone after failures.",
        ("capability",),
        lambda: {(capability.value,): breaker.is_open for capability, breaker in breakers.items()},
    )
    metrics.add_gauge(
        "database_connections",
        "Connections of the pools: in use, at most, and tasks that wait for one.",
        ("pool", "state"),
        database.pool_use,
    )
    metrics.add_gauge(
        "database_queue",
        "Transactions of turns that wait to be run.",
        (),
        lambda: {(): database.queue_length},
    )
    add_worker_gauges(metrics, engine, {"uploads": sandbox, "documents": documents})


def add_worker_gauges(
    metrics: Metrics,
    engine: EmbeddedEngine | None,
    sandboxes: Mapping[str, ForeignBytesWorker],
) -> None:
    """Let the metrics tell of the helper processes."""
    workers = {**sandboxes, **({"embedded": engine} if engine else {})}

    def states() -> dict[Labels, float]:
        found: dict[Labels, float] = {}
        for name, worker in workers.items():
            found[name, "running"] = worker.worker_pid is not None
            found[name, "ready"] = worker.is_ready
        return found

    metrics.add_gauge(
        "worker_process",
        "1 where a helper process is in this state.",
        ("process", "state"),
        states,
    )
    metrics.add_gauge(
        "worker_process_restarts",
        "How often a helper process was started again.",
        ("process",),
        lambda: {(name,): sandbox.restarts for name, sandbox in sandboxes.items()},
    )
    metrics.add_gauge(
        "worker_jobs",
        "Uploads that a helper process has in hand, and that wait for it.",
        ("process", "state"),
        lambda: {
            (name, state): count
            for name, sandbox in sandboxes.items()
            for state, count in (
                ("running", sandbox.running_count),
                ("waiting", sandbox.waiting_count),
            )
        },
    )


def _labelled(sizes: Mapping[str, int]) -> dict[Labels, float]:
    return {(name,): size for name, size in sizes.items()}
