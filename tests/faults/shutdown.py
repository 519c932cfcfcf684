"""Servers that are asked to end: with many streams open, and one after the other."""

import time

import anyio
from anyio.to_thread import run_sync

from tests.faults.checks import compare, figures, unexpected
from tests.faults.load import load
from tests.faults.recorder import Message, Recorder, answer_to, recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Platform, Server, platform

STREAMS = 200
EXIT_SECONDS = 30
SETTLE_SECONDS = 10
ENDED_WELL = ({0, -15}, "0 or SIGTERM's")


async def shutdown_with_streams(plan: Plan) -> Report:
    """SIGTERM under open streams: half end within the time there is, half are cut off."""
    name = "shutdown"
    rng = plan.rng(name)
    exits: list[float] = []
    async with (
        reporting(name, plan) as report,
        platform(postgres=False) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        (server,) = broken.servers
        agent_id = await book.make_agent()
        for _ in range(plan.rounds(1, 10)):
            streams = await _open_streams(book, broken, agent_id)
            async with anyio.create_task_group() as group:
                for message in streams:
                    group.start_soon(book.attempt, message)
                with anyio.fail_after(30):
                    while not all(len(message.events) > 2 for message in streams):
                        await anyio.sleep(0.05)
                await anyio.sleep(rng.uniform(0, 0.5))
                exits.append(await _end(server, report))
            drained = [str(message.told[-1]) for message in streams]
            report.require(
                is_so=set(drained) <= {"200", "200 server.draining"},
                otherwise=f"streams ended as {set(drained)}",
            )
            report.figures["drained"] = drained.count("200 server.draining")
            talk(broken.provider, seconds_per_word=0)
            await run_sync(server.start)
            await _resume_all(book, broken, streams, report)
        report.add(await compare(book, broken))
        report.add(unexpected(book, {"server-draining"}, may_break=False))
        report.figures |= figures(book, exit_seconds=exits)
    return report


async def _open_streams(book: Recorder, broken: Platform, agent_id: str) -> list[Message]:
    talk(broken.provider, seconds_per_word=0.4)
    # The long ones would take a minute: shutdown cuts them off.
    broken.provider.chat.text = lambda prompt: _slow_answer(prompt[-1]["content"])
    streams: list[Message] = []
    for _ in range(STREAMS):
        session_id = await book.open_session(agent_id)
        streams.append(book.compose(session_id, streams=True))
    return streams


def _slow_answer(content: str) -> list[str]:
    """Return the answer in small pieces, for every second message in very small ones."""
    answer = answer_to(content)
    size = len(answer) if int(content.rsplit(maxsplit=1)[-1]) % 2 else len(answer) // 3
    if size == len(answer):
        return list(answer)[:200]
    return [answer[i : i + size] for i in range(0, len(answer), size)]


async def _end(server: Server, report: Report) -> float:
    begun_at = time.monotonic()
    server.terminate()
    status = await run_sync(server.wait, EXIT_SECONDS + 15)
    seconds = time.monotonic() - begun_at
    expected, words = ENDED_WELL
    report.require(is_so=seconds <= EXIT_SECONDS, otherwise=f"the exit took {seconds:.1f} s")
    report.require(is_so=status in expected, otherwise=f"the status was {status}, not {words}")
    return round(seconds, 1)


async def _resume_all(
    book: Recorder, broken: Platform, streams: list[Message], report: Report
) -> None:
    """Take each stream up after its last event; it must come to its end."""
    async with anyio.create_task_group() as group:
        for message in streams:
            if not message.reply:
                group.start_soon(book.resume, message)
    for message in streams:
        told = [str(told) for told in message.told]
        report.require(
            is_so=bool(message.reply), otherwise=f"{message.content}: no end after {told}"
        )
    report.require(is_so=not await broken.unsettled(), otherwise="turns are stuck")


async def rolling_restart(plan: Plan) -> Report:
    """Replace two servers on one database one after the other, under load."""
    name = "rolling"
    rng = plan.rng(name)
    exits: list[float] = []
    async with (
        reporting(name, plan) as report,
        platform(postgres=True, servers=2) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        talk(broken.provider, seconds_per_word=0.03)
        async with load(book, 10) as talking:
            for _ in range(plan.rounds(1, 10)):
                for server in broken.servers:
                    await anyio.sleep(rng.uniform(0.5, 1.5))
                    exits.append(await _end(server, report))
                    await run_sync(server.start)
            report.add(await talking.settle(SETTLE_SECONDS))
        report.add(await compare(book, broken))
        # Between exit and start nobody listens, but no answer that was begun may break off.
        broken_off = book.tally()["0 ClientPayloadError"]
        report.require(is_so=not broken_off, otherwise=f"{broken_off} answers broke off")
        report.add(unexpected(book, {"server-draining", "turn-interrupted"}, may_break=True))
        report.figures = figures(book, exit_seconds=exits)
    return report
