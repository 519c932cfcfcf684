"""Power cuts: the server is killed under load, at random and at named points, and started again."""

import random
import time
from collections import Counter

import anyio
from anyio.to_thread import run_sync

from tests.faults.checks import compare, compare_sessions, figures, unexpected
from tests.faults.load import load
from tests.faults.recorder import Recorder, recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import START_SECONDS, Platform, Server, platform
from tests.support.warm_server import DIE_AT_COMMIT

CLIENTS = 20
LONGEST_SECONDS = (0.15, 0.6, 0.6, 1.5)  # now and then there is time to get something done
LONGEST_WAIT_SECONDS = 2
POINTS = ("moment", "asked", "answering", "created", "acknowledged", "starting")
"""When a round's kill comes: at any moment, when the provider is asked or answers, when a client
learns that its turn is accepted or settled, or while the server starts."""
COMMITS = ("before commit", "within commit")
SAMPLED_ROUNDS = 10
SAMPLED_SESSIONS = 20
SETTLE_SECONDS = 10
RETRY_SECONDS = 15


async def kills_on_sqlite(plan: Plan) -> Report:
    """Kill the only process of a SQLite file."""
    return await _kills("kills-sqlite", plan, postgres=False, rounds=plan.rounds(12, 500))


async def kills_on_postgres(plan: Plan) -> Report:
    """Kill a server that reaches Postgres through PgBouncer."""
    return await _kills("kills-postgres", plan, postgres=True, rounds=plan.rounds(6, 200))


async def _kills(name: str, plan: Plan, *, postgres: bool, rounds: int) -> Report:
    rng = plan.rng(name)
    points = [rng.choice(POINTS if postgres else (*POINTS, *COMMITS)) for _ in range(rounds)]
    async with (
        reporting(name, plan) as report,
        platform(postgres=postgres) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.004)
        (server,) = broken.servers
        is_due = False
        async with load(book, CLIENTS) as talking:
            for number, point in enumerate(points, start=1):
                await _until(point, book, broken, rng)
                if number == rounds:
                    talking.stop()
                await run_sync(server.kill)
                following = "" if number == rounds else points[number]
                await _start(server, following, rng)
                is_due = is_due or number % SAMPLED_ROUNDS == 0
                if is_due and following not in COMMITS:  # such a server dies in the middle of it
                    report.add(await sample(book, broken), f"after round {number}: ")
                    is_due = False
            restarted_at = time.monotonic()
            await _settled(broken, SETTLE_SECONDS, report)
            report.figures["settled_seconds"] = round(time.monotonic() - restarted_at, 1)
            report.add(await talking.settle(RETRY_SECONDS))
        report.add(await compare(book, broken))
        report.add(unexpected(book, {"turn-interrupted", "server-draining"}, may_break=True))
        report.figures |= figures(book, rounds=rounds, points=dict(Counter(points)))
    return report


async def _until(point: str, book: Recorder, broken: Platform, rng: random.Random) -> None:
    """Wait for the moment of a round's kill; not for long, for nothing may happen any more."""

    def passed() -> int:
        asked = len(broken.provider.requests)
        return {"asked": asked, "answering": asked}.get(point, book.passed[point])

    if point in {"moment", "starting"}:
        await anyio.sleep(rng.uniform(0.05, rng.choice(LONGEST_SECONDS)))
        return
    before = passed()
    with anyio.move_on_after(LONGEST_WAIT_SECONDS):
        if point in COMMITS:
            while not broken.servers[0].has_ended():
                await anyio.sleep(0.002)
            return
        while passed() == before:
            await anyio.sleep(0.001)
        if point == "answering":
            await anyio.sleep(rng.uniform(0.004, 0.1))


async def _start(server: Server, point: str, rng: random.Random) -> None:
    """Start the server, for a round that ends at `point`."""
    server.environment.pop(DIE_AT_COMMIT, None)
    if point == "starting":
        await run_sync(server.launch)
        await anyio.sleep(rng.uniform(0, 0.8))
        await run_sync(server.kill)
    if point in COMMITS:
        delay_seconds = 0 if point == "before commit" else rng.uniform(0.0002, 0.005)
        # The first few are of the start.
        server.environment[DIE_AT_COMMIT] = f"{rng.randrange(8, 60)} {delay_seconds}"
        await run_sync(server.launch)
        with anyio.fail_after(START_SECONDS):  # it may meet its commit while it starts
            while not server.has_ended() and not await run_sync(server.is_ready):
                await anyio.sleep(0.01)
        return
    await run_sync(server.start)


async def _settled(broken: Platform, seconds: float, report: Report) -> None:
    with anyio.move_on_after(seconds):
        while await broken.unsettled():
            await anyio.sleep(0.1)
        return
    stuck = await broken.query(
        "SELECT id, status, attempt, recoveries FROM {schema}turns "
        "WHERE status IN ('queued', 'in_progress')"
    )
    report.wrongs.append(f"{len(stuck)} turns are unsettled after {seconds} s: {stuck[:3]}")


async def sample(book: Recorder, broken: Platform) -> list[str]:
    """Compare some sessions in which nothing goes on."""
    busy = {message.session_id for message in book.messages if not message.reply}
    talked = {message.session_id for message in book.messages[-2000:]} - busy
    newest = {message.session_id for message in book.messages[-3 * CLIENTS :]}
    quiet = sorted(talked - newest)
    chosen = book.rng.sample(quiet, min(len(quiet), SAMPLED_SESSIONS))
    return await compare_sessions(book, broken, chosen)
