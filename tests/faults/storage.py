"""SQLite's surroundings: a full disk, a clock that jumps, a second process on the file."""

import resource
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from anyio.to_thread import run_sync

from tests.faults.checks import compare, figures, unexpected
from tests.faults.load import load, seconds_until_answered
from tests.faults.recorder import recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Platform, platform

CLIENTS = 10
BACK_SECONDS = 5
SETTLE_SECONDS = 10
DISK_BYTES = 24 << 20
HOURS = 11
"""Less than a day: keys and events that are older are forgotten, as documented."""


@dataclass(slots=True)
class SmallDisk:
    """A file system of its own, in memory."""

    folder: Path

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self, _platform: Platform) -> None:
        """Leave not one block."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 16, 1 << 12, 1):
                while True:
                    try:
                        filler.write(bytes(size))
                    except OSError:
                        break

    def clear(self, _platform: Platform) -> None:
        """Make room again."""
        self._filler.unlink()


@dataclass(slots=True)
class LimitedDisk:
    """A limit on the size of files, where nobody may mount: none can grow any more."""

    folder: Path

    def fill(self, platform: Platform) -> None:
        """Let no file of the server grow."""
        self._limit(platform, 1)

    def clear(self, platform: Platform) -> None:
        """Let them grow again."""
        self._limit(platform, resource.RLIM_INFINITY)

    def _limit(self, platform: Platform, size: int) -> None:
        (server,) = platform.servers
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


Disk = SmallDisk | LimitedDisk


@contextmanager
def _disk() -> Generator[Disk]:
    """Mount a small disk, or do without where that is not allowed."""
    with TemporaryDirectory(prefix="faults-disk-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "faults", name]
        try:
            is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            is_mounted = False
        if not is_mounted:
            yield LimitedDisk(Path(name))
            return
        try:
            yield SmallDisk(Path(name))
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


async def disk_full(plan: Plan) -> Report:
    """Fill the disk under load and make room again; every second time the server is killed."""
    name = "disk-full"
    with _disk() as disk:
        return await _disk_full(name, plan, disk)


async def limited_files(plan: Plan) -> Report:
    """Let no file of the server grow for a while: writes fail in another way than on a full disk.

    A limit of a process ends with it, so that nothing is killed meanwhile.
    """
    with TemporaryDirectory(prefix="faults-disk-") as name:
        return await _disk_full("limited-files", plan, LimitedDisk(Path(name)))


async def _disk_full(name: str, plan: Plan, disk: Disk) -> Report:
    rng = plan.rng(name)
    back_seconds: list[float] = []
    acknowledged = 0
    async with (
        reporting(name, plan) as report,
        platform(postgres=False, folder=disk.folder) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.01)
        (server,) = broken.servers
        agent_id = await book.make_agent()
        async with load(book, CLIENTS) as talking:
            for number in range(plan.rounds(2, 10)):
                await anyio.sleep(rng.uniform(0.3, 1))
                # Its log is reused in place, and would take writes for a while.
                await broken.query("PRAGMA wal_checkpoint(TRUNCATE)")
                await run_sync(disk.fill, broken)
                before = len(book.acknowledged)
                await anyio.sleep(rng.uniform(1, 3))
                acknowledged += len(book.acknowledged) - before
                report.require(
                    is_so=await run_sync(server.status_of, "/sessions") == 200,
                    otherwise="sessions cannot be read while the disk is full",
                )
                written = await run_sync(server.status_of, "/agents", '{"name": "One more"}')
                report.require(is_so=written == 503, otherwise=f"the full disk answers {written}")
                if number % 2 == 1 and isinstance(disk, SmallDisk):
                    await run_sync(server.kill)
                    await run_sync(disk.clear, broken)
                    await run_sync(server.start)
                else:
                    await run_sync(disk.clear, broken)
                back_seconds.append(await seconds_until_answered(book, agent_id))
            report.add(await talking.settle(SETTLE_SECONDS))
        report.require(
            is_so=max(back_seconds) <= BACK_SECONDS, otherwise=f"back after {back_seconds} s"
        )
        report.add(await compare(book, broken))
        report.add(unexpected(book, {"storage-unavailable", "turn-interrupted"}, may_break=True))
        report.figures = figures(
            book,
            disk=type(disk).__name__,
            acknowledged_while_full=acknowledged,
            slowest_back_seconds=round(max(back_seconds), 1),
        )
    return report


async def clock_moved(plan: Plan) -> Report:
    """Kill a server under load; for the next one the clock has jumped, and stands elsewhere.

    Nobody can move the clock of one process, so everything stored is moved the other way.
    """
    name = "clock"
    async with (
        reporting(name, plan) as report,
        platform(postgres=False) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.02)
        (server,) = broken.servers
        async with load(book, CLIENTS) as talking:
            leaps = ((HOURS, "Pacific/Kiritimati"), (-2 * HOURS, "Pacific/Niue"), (HOURS, "UTC"))
            for hours, zone in leaps * plan.rounds(1, 5):
                await anyio.sleep(1)
                await run_sync(server.kill)
                moved = await _move_what_is_stored(broken, hours)
                report.require(is_so=moved > 0, otherwise="nothing was moved")
                server.environment["TZ"] = zone
                await run_sync(server.start)
            await anyio.sleep(1)
            report.add(await talking.settle(SETTLE_SECONDS))
        report.add(await compare(book, broken))
        report.add(unexpected(book, {"turn-interrupted"}, may_break=True))
        report.figures = figures(book, leaps_of_hours=HOURS)
    return report


async def _move_what_is_stored(broken: Platform, hours: float) -> int:
    """Move every stored moment; return how many columns there are."""
    columns = await broken.query(
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c "
        "WHERE m.type = 'table' AND m.name != 'audit_log' AND (c.name LIKE '%\\_at' ESCAPE '\\')"
    )
    for table, column in columns:
        await broken.query(
            f"UPDATE {table} SET {column} = strftime('%Y-%m-%d %H:%M:%f000', {column}, "  # noqa: S608
            f"'{hours} hours') WHERE {column} IS NOT NULL"
        )
    return len(columns)


async def second_process(plan: Plan) -> Report:
    """Start the command on a file that is served: it refuses, and the first one never notices."""
    name = "second-process"
    async with (
        reporting(name, plan) as report,
        platform(postgres=False) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.01)
        (server,) = broken.servers
        async with load(book, CLIENTS) as talking:
            log = broken.folder / "second.log"
            with log.open("wb") as output:
                second = await anyio.run_process(
                    [sys.executable, "-m", "app.cli", "serve"],
                    env=server.environment | {"PORT": "0"},
                    cwd=broken.folder,
                    stdout=output,
                    stderr=output,
                    check=False,
                )
            report.add(await talking.settle(SETTLE_SECONDS))
        words = log.read_text()
        report.require(is_so=second.returncode not in {0, None}, otherwise="it did not refuse")
        report.require(is_so="Another process uses" in words, otherwise=f"it said: {words[-500:]}")
        report.require(is_so="Traceback" not in words, otherwise="it showed a traceback")
        report.add(await compare(book, broken))
        report.add(unexpected(book, set(), may_break=False))
        report.figures = figures(book, exit_status=second.returncode)
    return report
