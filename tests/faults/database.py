"""The database goes away under load, in each of the ways it can, and comes back."""

import random

import anyio
from anyio.to_thread import run_sync

from tests.faults.checks import compare, figures, unexpected
from tests.faults.load import load, seconds_until_answered
from tests.faults.recorder import recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Platform, platform

CLIENTS = 10
BACK_SECONDS = 5
SETTLE_SECONDS = 30
CODES = {"storage-unavailable", "storage-outcome-unknown", "turn-state-unknown"}
FAULTS = ("restarted", "frozen", "cut off", "killed")


async def database_away(plan: Plan) -> Report:
    """Restart, freeze, kill and cut off Postgres under a server that talks."""
    name = "database"
    rng = plan.rng(name)
    rounds = plan.rounds(3, 50)
    back_seconds: list[float] = []
    async with (
        reporting(name, plan) as report,
        platform(postgres=True, durable=True) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.02)
        agent_id = await book.make_agent()
        async with load(book, CLIENTS) as talking:
            for number in range(rounds):
                await anyio.sleep(rng.uniform(0.5, 1.5))
                fault = FAULTS[number % len(FAULTS)] if number < 4 else rng.choice(FAULTS)
                await _break(broken, fault, rng)
                back_seconds.append(await seconds_until_answered(book, agent_id))
                report.require(
                    is_so=back_seconds[-1] <= BACK_SECONDS,
                    otherwise=f"round {number}, {fault}: back after {back_seconds[-1]:.1f} s",
                )
            report.add(await talking.settle(SETTLE_SECONDS))
        report.add(await compare(book, broken))
        report.add(unexpected(book, CODES, may_break=False))
        slowest = max(told.seconds for message in book.messages for told in message.told)
        report.figures = figures(
            book,
            rounds=rounds,
            slowest_back_seconds=round(max(back_seconds), 2),
            slowest_answer_seconds=round(slowest, 2),
        )
    return report


async def _break(broken: Platform, fault: str, rng: random.Random) -> None:
    """Take the database away for a while; return when it is back."""
    postgres, pooler = broken.postgres, broken.pooler
    assert postgres is not None
    assert pooler is not None
    away_seconds = rng.uniform(0.5, 4)
    match fault:
        case "restarted":
            await run_sync(postgres.stop)
            await anyio.sleep(away_seconds)
            await run_sync(postgres.start)
        case "frozen":
            await run_sync(postgres.freeze)
            await anyio.sleep(away_seconds)
            await run_sync(postgres.thaw)
        case "cut off":
            await run_sync(pooler.kill)
            await anyio.sleep(away_seconds)
            await run_sync(pooler.start)
        case _:
            await run_sync(postgres.kill)
            await anyio.sleep(away_seconds)
            await run_sync(postgres.start)
