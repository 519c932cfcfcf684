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
from pathlib import Path

from bench.processes import Server, children, cpu_seconds
from bench.sessions import ServerSessions
from bench.site import Site
from bench.wire import ClientConnection, run, text_turn

Cells = list[list[str]]

_SECONDS = 8.0
_WARM_UP_SECONDS = 2.0
_CONNECTIONS = 64
_SHARE = 0.1
_RATIO_LIMIT = 1.8
_PERIOD_US = 50_000
_CGROUPS = Path("/sys/fs/cgroup")


def processes(site: Site) -> Cells:
    """Text turns on PostgreSQL by one process, two workers of one server, and two servers."""
    cells = [
        ["a process may use", "servers", "turns/s", "x", f">= {_RATIO_LIMIT}",
         "server CPU-ms a turn", "x", "cores: servers", "database", "provider", "client",
         "most of one worker's turns"],
    ]  # fmt: skip
    for share in (_SHARE, None):
        once = once_ms = 0.0
        for name, workers, count in (
            ("one process", 1, 1),
            ("two workers", 2, 1),
            ("two servers", 1, 2),
        ):
            told = _measure(site, share, workers, count)
            if told is None:
                continue
            rate, cpu_ms, numbers = told
            once, once_ms = once or rate, once_ms or cpu_ms
            costs = [f"{cpu_ms:.2f}", f"{cpu_ms / once_ms:.2f}"]
            verdict = "" if rate == once else "yes" if rate / once >= _RATIO_LIMIT else "NO"
            allowed = f"{share:.0%} of a core" if share else "what there is"
            cells.append(
                [allowed, name, f"{rate:.0f}", f"{rate / once:.2f}", verdict, *costs, *numbers]
            )
    return cells


def _measure(
    site: Site, share: float | None, workers: int, count: int
) -> tuple[float, float, list[str]] | None:
    """Return turns a second, CPU-ms a turn and other figures; `None` where no quota can be set."""
    place = site.place("PostgreSQL")
    with ExitStack() as stack:
        servers = [
            stack.enter_context(site.server(place, WORKERS=str(workers))) for _ in range(count)
        ]
        ids = ServerSessions(servers[0].port).make("tokens-20", _CONNECTIONS)
        serving = [pid for server in servers for pid in children(server.pid) or [server.pid]]
        if share:
            try:
                for pid in serving:
                    stack.enter_context(_quota(pid, share))
            except OSError:
                return None
        watched = {
            "servers": [server.pid for server in servers],
            "database": [site.postgres.pid or 0],
            "provider": [site.provider.pid],
            "client": [os.getpid()],
        }
        run(_hammer(servers, ids, _WARM_UP_SECONDS))
        before = {name: sum(map(_own, pids)) for name, pids in watched.items()}
        of_each = [_own(pid) for pid in serving]
        done = run(_hammer(servers, ids, _SECONDS))
        of_each = [_own(pid) - used for pid, used in zip(serving, of_each, strict=True)]
        used = {name: sum(map(_own, pids)) - before[name] for name, pids in watched.items()}
    numbers = [
        *(f"{seconds / _SECONDS:.2f}" for seconds in used.values()),
        f"{max(of_each) / sum(of_each):.0%}",
    ]
    return done / _SECONDS, used["servers"] * 1000 / max(1, done), numbers


def _own(pid: int) -> float:
    # The client's children are the others.
    return time.process_time() if pid == os.getpid() else cpu_seconds(pid)


async def _hammer(servers: Sequence[Server], ids: Sequence[str], seconds: float) -> int:
    """Send turns, each connection one after the other, and return how many were completed."""
    done = 0
    end_at = time.perf_counter() + seconds

    async def use(number: int, session_id: str) -> None:
        nonlocal done
        connection = await ClientConnection.open(servers[number % len(servers)].port)
        while time.perf_counter() < end_at:
            status = await connection.exchange(text_turn(session_id), _ignore)
            if status == 200 and time.perf_counter() < end_at:  # noqa: PLR2004  # OK
                done += 1
        connection.close()

    async with asyncio.TaskGroup() as tasks:
        for number, session_id in enumerate(ids):
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
