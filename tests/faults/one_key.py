"""Many posts with one key, and many clients in one session, all at once."""

import json

import anyio

from tests.faults.checks import compare, figures, prompts_seen, unexpected
from tests.faults.recorder import Message, Recorder, recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Platform, platform

CLIENTS = 64
FULL = "429 session-queue-full"
ROUNDS = 3


async def one_key_on_sqlite(plan: Plan) -> Report:
    """Post one message many times at once, to one server."""
    return await _one_key("one-key-sqlite", plan, servers=1)


async def one_key_on_postgres(plan: Plan) -> Report:
    """Post one message many times at once, to two servers on one database."""
    return await _one_key("one-key-postgres", plan, servers=2)


async def one_session_on_sqlite(plan: Plan) -> Report:
    """Let many clients talk in one session of one server."""
    return await _one_session("one-session-sqlite", plan, servers=1)


async def one_session_on_postgres(plan: Plan) -> Report:
    """Let many clients talk in one session of two servers."""
    return await _one_session("one-session-postgres", plan, servers=2)


async def _one_key(name: str, plan: Plan, *, servers: int) -> Report:
    posts = plan.rounds(100, 1000)
    async with (
        reporting(name, plan) as report,
        platform(postgres=servers > 1, servers=servers) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.01)
        agent_id = await book.make_agent()
        for number in range(ROUNDS):
            session_id = await book.open_session(agent_id)
            content, key = f"{name} round {number}", f"{name}-{number}"
            same = [
                Message(key, session_id, content, streams=number == 1 and post % 2 == 0)
                for post in range(posts)
            ]
            async with anyio.create_task_group() as group:
                for message in same:
                    group.start_soon(book.insist, message)
            book.messages += same
            report.add(_compare_equal(same, broken), f"round {number}: ")
        report.add(await compare(book, broken))
        report.add(unexpected(book, {"storage-unavailable", "server-busy"}, may_break=False))
        slowest = max(told.seconds for message in book.messages for told in message.told)
        report.figures = figures(book, rounds=ROUNDS, slowest_seconds=round(slowest, 2))
    return report


def _compare_equal(same: list[Message], broken: Platform) -> list[str]:
    wrongs: list[str] = []
    # The order of a body's members may differ: Postgres has its own for JSON.
    bodies = {json.dumps(json.loads(body), sort_keys=True) for m in same for body in m.answers}
    said = {((m.reply or {}).get("id"), (m.reply or {}).get("content")) for m in same}
    if len(bodies) > 1 or len(said) > 1:
        wrongs.append(f"one key has different answers: {sorted(bodies)[:3]} {said}")
    calls = len(prompts_seen(broken)[same[0].content])
    if calls != 1:
        wrongs.append(f"the provider was called {calls} times")
    return wrongs


async def _one_session(name: str, plan: Plan, *, servers: int) -> Report:
    sends = plan.rounds(120, 1000)
    async with (
        reporting(name, plan) as report,
        platform(postgres=servers > 1, servers=servers) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0)
        session_id = await book.open_session(await book.make_agent())
        async with anyio.create_task_group() as group:
            for _ in range(CLIENTS):
                group.start_soon(_send_in_turn, book, session_id, sends)
        report.add(await compare(book, broken))
        told = book.tally()
        report.require(is_so=told[FULL] > 0, otherwise="the queue was never full")
        told_else = unexpected(book, {"storage-unavailable"}, may_break=False, also={FULL})
        report.add(told_else)
        report.figures = figures(book)
    return report


async def _send_in_turn(book: Recorder, session_id: str, sends: int) -> None:
    while len(book.messages) < sends:
        message = book.compose(session_id, streams=book.rng.random() < 0.3)
        await book.insist(message, pause_seconds=3)
