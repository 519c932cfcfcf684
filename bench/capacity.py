"""The throughput of several server processes compared with one.

If the cores also run the provider, the database and the client, more processes only share them. So
each server process gets a fixed share of a core (a cgroup's quota), as if it had a small machine of
its own: then only the software can prevent two processes from serving twice as many turns. Without
the permission to create cgroups the processes are unlimited, and the table says so.
"""

import asyncio
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Server, children, cpu_seconds
from bench.sessions import ServerSessions
from bench.site import Site
from bench.wire import ClientConnection, run, text_turn

Cells = list[list[str]]

_SETUPS = (("one process", 1, 1), ("two workers", 2, 1), ("two servers", 1, 2))
"""The name of each setup, its workers per server, and its servers."""
_ROUNDS = 4
_SECONDS = 5.0
_WARM_UP_SECONDS = 2.0
_CONNECTIONS = 32
_SHARE = 0.1
_RATIO_LIMIT = 1.8
_PERIOD_US = 50_000
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(slots=True)
class Setup:
    """A set of server processes, and the measurements of it."""

    name: str
    servers: Sequence[Server]
    serving_pids: Sequence[int]
    """The processes that serve requests; a server with workers has a supervisor in addition."""
    session_ids: Sequence[str]
    turns: int = 0
    cpu: dict[str, float] = field(default_factory=dict[str, float])
    process_cpu: list[float] = field(default_factory=list[float])
    """CPU-seconds of each of `serving_pids`."""


def processes(site: Site) -> Cells:
    """Text turns on PostgreSQL by one process, two workers of one server, and two servers.

    Each process serves the same number of connections. The setups are measured alternately, so
    that the machine's noise affects all of them alike.
    """
    cells = [
        ["CPU quota of a process", "servers", "turns/s", "x", f">= {_RATIO_LIMIT}",
         "server CPU-ms per turn", "x", "cores: servers", "database", "provider", "client",
         "largest share of one process"],
    ]  # fmt: skip
    for share in (_SHARE, None):
        with ExitStack() as stack:
            setups = [_set_up(stack, site, *each) for each in _SETUPS]
            if share:
                try:
                    for setup in setups:
                        for pid in setup.serving_pids:
                            stack.enter_context(_quota(pid, share))
                except OSError:
                    continue  # no permission to create cgroups
            for setup in setups:
                run(_send_turns(setup, _WARM_UP_SECONDS))
            for _ in range(_ROUNDS):
                for setup in setups:
                    _measure(site, setup)
        quota = f"{share:.0%} of a core" if share else "unlimited"
        cells += [[quota, *_row(setup, setups[0])] for setup in setups]
    return cells


def _set_up(stack: ExitStack, site: Site, name: str, workers: int, count: int) -> Setup:
    place = site.place("PostgreSQL")
    servers = [stack.enter_context(site.server(place, WORKERS=str(workers))) for _ in range(count)]
    pids = [pid for server in servers for pid in children(server.pid) or [server.pid]]
    ids = ServerSessions(servers[0].port).make("tokens-20", _CONNECTIONS * len(pids))
    return Setup(name, servers, pids, ids, process_cpu=[0.0] * len(pids))


def _measure(site: Site, setup: Setup) -> None:
    watched = {
        "servers": [server.pid for server in setup.servers],
        "database": [site.postgres.pid or 0],
        "provider": [site.provider.pid],
        "client": [os.getpid()],
    }
    before = {name: sum(map(_process_cpu, pids)) for name, pids in watched.items()}
    serving_before = [_process_cpu(pid) for pid in setup.serving_pids]
    setup.turns += run(_send_turns(setup, _SECONDS))
    for number, pid in enumerate(setup.serving_pids):
        setup.process_cpu[number] += _process_cpu(pid) - serving_before[number]
    for name, pids in watched.items():
        used = sum(map(_process_cpu, pids)) - before[name]
        setup.cpu[name] = setup.cpu.get(name, 0.0) + used


def _row(setup: Setup, baseline: Setup) -> list[str]:
    seconds = _SECONDS * _ROUNDS
    ratio = setup.turns / baseline.turns
    cost_ms, baseline_ms = (each.cpu["servers"] * 1000 / each.turns for each in (setup, baseline))
    return [
        setup.name,
        f"{setup.turns / seconds:.0f}",
        f"{ratio:.2f}",
        "" if setup is baseline else "yes" if ratio >= _RATIO_LIMIT else "NO",
        f"{cost_ms:.2f}",
        f"{cost_ms / baseline_ms:.2f}",
        *(f"{used / seconds:.2f}" for used in setup.cpu.values()),
        f"{max(setup.process_cpu) / sum(setup.process_cpu):.0%}",
    ]


def _process_cpu(pid: int) -> float:
    # This process's own time only: its children are the measured processes.
    return time.process_time() if pid == os.getpid() else cpu_seconds(pid)


async def _send_turns(setup: Setup, seconds: float) -> int:
    """Send turns one after the other on each connection; return how many were completed."""
    completed = 0
    end_at = time.perf_counter() + seconds

    async def use(number: int, session_id: str) -> None:
        nonlocal completed
        server = setup.servers[number % len(setup.servers)]
        connection = await ClientConnection.open(server.port)
        while time.perf_counter() < end_at:
            status = await connection.exchange(text_turn(session_id), _ignore)
            if status == 200 and time.perf_counter() < end_at:  # noqa: PLR2004  # OK
                completed += 1
        connection.close()

    async with asyncio.TaskGroup() as tasks:
        for number, session_id in enumerate(setup.session_ids):
            tasks.create_task(use(number, session_id))
    return completed


@contextmanager
def _quota(pid: int, share: float) -> Generator[None]:
    """Limit a process to `share` of a core. Raises `OSError` without the permission to."""
    is_first_version = (_CGROUPS / "cpu").is_dir()
    folder = (_CGROUPS / "cpu" if is_first_version else _CGROUPS) / f"bench-{pid}"
    quota_us = int(_PERIOD_US * share)
    folder.mkdir()
    try:
        if is_first_version:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        (folder / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with suppress(OSError):  # the process has ended
            (folder.parent / "cgroup.procs").write_text(str(pid))
        with suppress(OSError):
            folder.rmdir()


def _ignore(_piece: bytes) -> None:
    pass
