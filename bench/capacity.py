"""How many turns several processes carry, beside one.

On a machine whose cores also run the provider, the database and the client, more processes only
share what is there. So each server process is given a fixed share of a core (a cgroup's quota), as
if it had a small machine of its own: then nothing but the software can keep two from carrying twice
as much. Without the right to make cgroups the processes are unlimited, and the table says so.
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

_WAYS = (("one process", 1, 1), ("two workers", 2, 1), ("two servers", 1, 2))
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
    """One way to serve, and what was seen of it."""

    name: str
    servers: Sequence[Server]
    serving: Sequence[int]
    """The processes that answer, as a server with workers is one more."""
    ids: Sequence[str]
    turns: int = 0
    cpu: dict[str, float] = field(default_factory=dict[str, float])
    of_each: list[float] = field(default_factory=list[float])
    """CPU-seconds of each of `serving`."""


def processes(site: Site) -> Cells:
    """Text turns on PostgreSQL by one process, two workers of one server, and two servers.

    Each process has as many connections to serve. All are asked in turns, so that the machine's
    noise is in all of them alike.
    """
    cells = [
        ["a process may use", "servers", "turns/s", "x", f">= {_RATIO_LIMIT}",
         "server CPU-ms a turn", "x", "cores: servers", "database", "provider", "client",
         "most of one worker's turns"],
    ]  # fmt: skip
    for share in (_SHARE, None):
        with ExitStack() as stack:
            setups = [_set_up(stack, site, *each) for each in _WAYS]
            if share:
                try:
                    for setup in setups:
                        for pid in setup.serving:
                            stack.enter_context(_quota(pid, share))
                except OSError:
                    continue  # this machine does not let us
            for setup in setups:
                run(_hammer(setup, _WARM_UP_SECONDS))
            for _ in range(_ROUNDS):
                for setup in setups:
                    _measure(site, setup)
        allowed = f"{share:.0%} of a core" if share else "what there is"
        cells += [[allowed, *_told(setup, setups[0])] for setup in setups]
    return cells


def _set_up(stack: ExitStack, site: Site, name: str, workers: int, count: int) -> Setup:
    place = site.place("PostgreSQL")
    servers = [stack.enter_context(site.server(place, WORKERS=str(workers))) for _ in range(count)]
    serving = [pid for server in servers for pid in children(server.pid) or [server.pid]]
    ids = ServerSessions(servers[0].port).make("tokens-20", _CONNECTIONS * len(serving))
    return Setup(name, servers, serving, ids, of_each=[0.0] * len(serving))


def _measure(site: Site, setup: Setup) -> None:
    watched = {
        "servers": [server.pid for server in setup.servers],
        "database": [site.postgres.pid or 0],
        "provider": [site.provider.pid],
        "client": [os.getpid()],
    }
    before = {name: sum(map(_own, pids)) for name, pids in watched.items()}
    before_of_each = [_own(pid) for pid in setup.serving]
    setup.turns += run(_hammer(setup, _SECONDS))
    for number, pid in enumerate(setup.serving):
        setup.of_each[number] += _own(pid) - before_of_each[number]
    for name, pids in watched.items():
        used = sum(map(_own, pids)) - before[name]
        setup.cpu[name] = setup.cpu.get(name, 0.0) + used


def _told(setup: Setup, once: Setup) -> list[str]:
    seconds = _SECONDS * _ROUNDS
    times = setup.turns / once.turns
    cost_ms, cost_once_ms = (each.cpu["servers"] * 1000 / each.turns for each in (setup, once))
    return [
        setup.name,
        f"{setup.turns / seconds:.0f}",
        f"{times:.2f}",
        "" if setup is once else "yes" if times >= _RATIO_LIMIT else "NO",
        f"{cost_ms:.2f}",
        f"{cost_ms / cost_once_ms:.2f}",
        *(f"{used / seconds:.2f}" for used in setup.cpu.values()),
        f"{max(setup.of_each) / sum(setup.of_each):.0%}",
    ]


def _own(pid: int) -> float:
    # The client's children are the others.
    return time.process_time() if pid == os.getpid() else cpu_seconds(pid)


async def _hammer(setup: Setup, seconds: float) -> int:
    """Send turns, each connection one after the other, and return how many were completed."""
    done = 0
    end_at = time.perf_counter() + seconds

    async def use(number: int, session_id: str) -> None:
        nonlocal done
        server = setup.servers[number % len(setup.servers)]
        connection = await ClientConnection.open(server.port)
        while time.perf_counter() < end_at:
            status = await connection.exchange(text_turn(session_id), _ignore)
            if status == 200 and time.perf_counter() < end_at:  # noqa: PLR2004  # OK
                done += 1
        connection.close()

    async with asyncio.TaskGroup() as tasks:
        for number, session_id in enumerate(setup.ids):
            tasks.create_task(use(number, session_id))
    return done


@contextmanager
def _quota(pid: int, share: float) -> Generator[None]:
    """Let a process use no more than `share` of a core. Raises `OSError` where that is refused."""
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
        with suppress(OSError):  # it has ended
            (folder.parent / "cgroup.procs").write_text(str(pid))
        with suppress(OSError):
            folder.rmdir()


def _ignore(_piece: bytes) -> None:
    pass
