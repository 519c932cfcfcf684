"""The clock of a server leaps while it runs, and two servers disagree about the hour."""

import http.client
import time
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from tests.faults.checks import compare, figures, unexpected
from tests.faults.load import load
from tests.faults.recorder import recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Server, platform
from tests.support.tools import ToolMissing

CLIENTS = 10
SETTLE_SECONDS = 10
HOURS = 11
"""Less than a day: keys and events that are older are forgotten, as documented."""
_LEAP_SECONDS = 3
"""A server looks at its clock's file each second; two are left to it afterwards."""
_EQUAL_HOURS = 0.01
_LIBRARIES = "usr/lib*/*/faketime/libfaketime.so.1"


async def clock_leaps_on_sqlite(plan: Plan) -> Report:
    """Let the only server's clock leap to and fro."""
    return await _clock_leaps("clock-leaps-sqlite", plan, postgres=False)


async def clock_leaps_on_postgres(plan: Plan) -> Report:
    """Let the clock of one of two servers leap; the other one's and Postgres' stay."""
    return await _clock_leaps("clock-leaps-postgres", plan, postgres=True)


async def _clock_leaps(name: str, plan: Plan, *, postgres: bool) -> Report:
    async with (
        reporting(name, plan) as report,
        platform(postgres=postgres, servers=int(postgres)) as broken,
    ):
        talk(broken.provider, seconds_per_word=0.02)
        clock = Clock(broken.folder / "clock")
        leaping = broken.add_server(**clock.environment)
        await run_sync(leaping.start)
        async with recorder(broken.urls, plan.seed, name) as book:
            async with load(book, CLIENTS) as talking:
                for hours in (HOURS, -HOURS, 0) * plan.rounds(1, 5):
                    clock.leap(hours)
                    await anyio.sleep(_LEAP_SECONDS)
                    ahead = await run_sync(_hours_ahead, leaping)
                    report.require(
                        is_so=abs(ahead - hours) < _EQUAL_HOURS,
                        otherwise=f"the clock is {ahead:.2f} hours ahead, and not {hours}",
                    )
                report.add(await talking.settle(SETTLE_SECONDS))
            report.add(await compare(book, broken))
            report.add(unexpected(book, set(), may_break=False))
            slowest = max(told.seconds for message in book.messages for told in message.told)
            report.figures = figures(
                book, leaps_of_hours=HOURS, slowest_answer_seconds=round(slowest, 2)
            )
    return report


class Clock:
    """What a server that is started with `environment` takes for the time of day."""

    def __init__(self, path: Path) -> None:
        self._path = path
        library = next(Path("/").glob(_LIBRARIES), None)
        if library is None:
            raise ToolMissing(
                "libfaketime is not installed: `apt install libfaketime` (Debian, Ubuntu)."
            )
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # or waiting threads would spin
        }
        self.leap(0)

    def leap(self, hours: int) -> None:
        """Be that far from the right time, from now on."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{hours:+}h\n")
        new.rename(self._path)


def _hours_ahead(server: Server) -> float:
    """Ask a server for its time."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as client:
        client.request("GET", "/health/live")
        date = client.getresponse().getheader("Date", "")
    return (parsedate_to_datetime(date).timestamp() - time.time()) / 3600
