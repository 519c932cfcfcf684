"""COMMITs whose answer is lost: Postgres crashes, or a connection is cut at the wrong moment."""

import re
import time
from contextlib import AsyncExitStack

import anyio
from anyio.to_thread import run_sync

from tests.faults.checks import compare, figures, unexpected
from tests.faults.commit_proxy import commit_proxy
from tests.faults.load import Load, load
from tests.faults.recorder import EVENTS, Message, Recorder, recorder, talk
from tests.faults.report import Plan, Report, reporting
from tests.faults.servers import Platform, platform

CLIENTS = 5
CROWDS = 2
CANCELLERS = 2
TRUSTING = 3
SETTLE_SECONDS = 40
IDLE_EXIT_SECONDS = 5
NOTHING_STORED = "503 storage-unavailable"
CODES = {
    "storage-unavailable",
    "storage-outcome-unknown",
    "turn-state-unknown",
    "turn-interrupted",
}
ALSO = {"409 turn-cancelled", "200 turn.cancelled", "200 turn-state-unknown"}


async def crashes_under_load(plan: Plan) -> Report:
    """Let Postgres crash (`pg_ctl stop -m immediate`) under clients of each kind, and come back."""
    name = "crashes"
    rng = plan.rng(name)
    rounds = plan.rounds(4, 200)
    async with (
        reporting(name, plan) as report,
        platform(postgres=True, durable=True) as broken,
        recorder(broken.urls, plan.seed, name) as book,
    ):
        postgres = broken.postgres
        assert postgres is not None
        talk(broken.provider, seconds_per_word=0.01)
        async with talking(book) as clients:
            for _ in range(rounds):
                await anyio.sleep(rng.uniform(0.3, 1.5))
                await run_sync(postgres.crash)
                await anyio.sleep(rng.choice((0, 0.4, rng.uniform(0, 3))))
                await run_sync(postgres.start)
            report.add(await clients.settle(SETTLE_SECONDS))
        await _check(book, broken, clients, report)
        report.figures = figures(book, rounds=rounds, **clients.figures)
    return report


async def lost_commits(plan: Plan) -> Report:
    """Lose the answer of one COMMIT in twelve, of two servers that share their sessions."""
    name = "lost-commits"
    rng = plan.rng(name)
    seconds = plan.rounds(8, 300)
    async with AsyncExitStack() as stack:
        report = await stack.enter_async_context(reporting(name, plan))
        broken = await stack.enter_async_context(platform(postgres=True, servers=0, durable=True))
        pooler = broken.pooler
        assert pooler is not None
        proxy = await stack.enter_async_context(commit_proxy(pooler.port, rng))
        url = re.sub(r":\d+/", f":{proxy.port}/", pooler.url())
        for _ in range(2):
            await run_sync(broken.add_server(DATABASE_URL=url).start)
        book = await stack.enter_async_context(recorder(broken.urls, plan.seed, name))
        talk(broken.provider, seconds_per_word=0.04)
        async with talking(book) as clients:
            proxy.is_losing = True
            await anyio.sleep(seconds)
            proxy.is_losing = False
            report.add(await clients.settle(SETTLE_SECONDS))
        await _check(book, broken, clients, report)
        report.require(is_so=bool(proxy.lost), otherwise="no COMMIT lost its answer")
        lost = dict(sorted(proxy.lost.items()))
        report.figures = figures(
            book, commits=proxy.commits.total(), lost=proxy.lost.total(), lost_by_kind=lost,
            **clients.figures,
        )  # fmt: skip
    return report


class Clients:
    """Clients of each kind, in sessions of their own."""

    def __init__(self, book: Recorder, insisting: Load) -> None:
        self._book = book
        self._insisting = insisting
        self._is_stopping = False
        self._busy = 0
        self.single: list[Message] = []
        """Messages that were sent once, by clients that believe what they are told."""
        self.cancelled = 0

    @property
    def figures(self) -> dict[str, object]:
        """How often each kind of client did its work."""
        refused = sum(str(message.told[0]) == NOTHING_STORED for message in self.single)
        return {"sent_once": len(self.single), "refused": refused, "cancelled": self.cancelled}

    async def settle(self, seconds: float) -> list[str]:
        """Stop, and wait until everything that is insisted upon is acknowledged."""
        self._is_stopping = True
        wrongs = await self._insisting.settle(seconds)
        with anyio.move_on_after(seconds):
            while self._busy:
                await anyio.sleep(0.05)
        return [*wrongs, *([f"{self._busy} clients still wait"] if self._busy else [])]

    async def crowd(self, agent_id: str) -> None:
        """Send several messages to one session at once, so that turns are queued and promoted."""
        while not self._is_stopping:
            session_id = await self._book.open_session(agent_id)
            self._busy += 1
            async with anyio.create_task_group() as group:
                for number in range(4):
                    message = self._book.compose(session_id, streams=number % 2 == 0)
                    group.start_soon(self._book.insist, message)
            self._busy -= 1

    async def cancel(self, agent_id: str) -> None:
        """Begin turns and cancel them, on any server; then go on in the same session."""
        while not self._is_stopping:
            session_id = await self._book.open_session(agent_id)
            self._busy += 1
            message = self._book.compose(session_id, streams=True)
            async with anyio.create_task_group() as group:
                group.start_soon(self._book.attempt, message)
                with anyio.move_on_after(2):
                    while not message.turn_id:
                        await anyio.sleep(0.01)
                if message.turn_id:
                    self.cancelled += await self._cancel_turn(message.turn_id)
            await self._book.insist(self._book.compose(session_id, streams=False))
            self._busy -= 1

    async def _cancel_turn(self, turn_id: str) -> int:
        while True:
            url = f"{self._book.rng.choice(self._book.urls)}/turns/{turn_id}/cancel"
            async with self._book.http.post(url, headers=EVENTS) as response:
                if response.status < 500:
                    return int((await response.json())["status"] == "cancelled")
            await anyio.sleep(0.1)

    async def trust(self, agent_id: str) -> None:
        """Send each message once; after a refusal, say it in other words."""
        while not self._is_stopping:
            session_id = await self._book.open_session(agent_id)
            self._busy += 1
            for _ in range(3):
                message = self._book.compose(session_id, streams=self._book.rng.random() < 0.3)
                await self._book.attempt(message)
                self.single.append(message)
                if not message.reply:
                    await anyio.sleep(self._book.rng.uniform(0.02, 0.2))
            self._busy -= 1


class talking:  # noqa: N801  # a context manager, used as a function
    """Let clients of each kind talk while the block runs."""

    def __init__(self, book: Recorder) -> None:
        self._book = book
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Clients:
        insisting = await self._stack.enter_async_context(load(self._book, CLIENTS))
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(group.cancel_scope.cancel)
        clients = Clients(self._book, insisting)
        agent_id = await self._book.make_agent()
        for work, count in (
            (clients.crowd, CROWDS),
            (clients.cancel, CANCELLERS),
            (clients.trust, TRUSTING),
        ):
            for _ in range(count):
                group.start_soon(work, agent_id)
        return clients

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()


async def _check(book: Recorder, broken: Platform, clients: Clients, report: Report) -> None:
    """Look for blocked sessions, lost or doubled messages, untrue refusals, and what is left."""
    begun_at = time.monotonic()
    with anyio.move_on_after(SETTLE_SECONDS):
        while await broken.unsettled():
            await anyio.sleep(0.1)
    report.figures["settled_seconds"] = round(time.monotonic() - begun_at, 1)
    report.add(await compare(book, broken))
    report.add(unexpected(book, CODES, may_break=False, also=ALSO))
    stored = {row[0] for row in await broken.query("SELECT content FROM {schema}messages")}
    report.add([
        f"{message.content!r}: the client was told that nothing was stored, and it was"
        for message in clients.single
        if str(message.told[0]) == NOTHING_STORED and message.content in stored
    ])  # fmt: skip
    held = await broken.query(
        "SELECT id FROM {schema}turns WHERE owner_id IS NOT NULL OR lease_expires_at IS NOT NULL"
    )
    report.require(is_so=not held, otherwise=f"{len(held)} leases are held")
    doubled = await broken.query(
        "SELECT turn_id FROM {schema}turn_events GROUP BY turn_id, last_number HAVING count(*) > 1"
    )
    report.require(is_so=not doubled, otherwise=f"{len(doubled)} batches of events are doubled")
    for server in broken.servers:  # one that has nothing registered has nothing to wait for
        asked_at = time.monotonic()
        await run_sync(server.terminate)
        status = await run_sync(server.wait, 35)
        seconds = time.monotonic() - asked_at
        report.require(
            is_so=status in {0, -15} and seconds < IDLE_EXIT_SECONDS,
            otherwise=f"an idle server took {seconds:.1f} s to stop, with {status}",
        )
