"""The asyncio tasks of running turns, and their shutdown."""

import asyncio
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import anyio
from anyio.abc import TaskStatus

from app.models import TurnStatus
from app.services.turns.execution.live_turn import LiveTurn

DRAIN_SECONDS = 24
"""Leaves time to settle or give up what is cut off, within the 30 s of a shutdown."""
_FOLLOWERS_SECONDS = 2
"""How long followers may still query the database, which may be unavailable."""


class TurnTasks:
    """Runs turns; after `drain`, for `drain_seconds` only. Then the rest is interrupted."""

    def __init__(
        self,
        turns: Mapping[UUID, LiveTurn],
        leave: Callable[[LiveTurn], None],
        drain_seconds: float,
    ) -> None:
        """`turns` run or are queued on this server; `leave` releases a queued one."""
        self.draining = anyio.Event()
        """Set once no turns are accepted."""
        self.stopped = anyio.Event()
        """Set once all tasks have ended."""
        self._turns = turns
        self._release = leave
        self._drain_seconds = drain_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        """asyncio tasks: anyio's would add 5 % to the cost of a turn."""
        self._followers: dict[asyncio.Task[None], anyio.CancelScope] = {}
        """Tasks with their cancel scopes: asyncio's own cancellation would interrupt a query."""
        self._is_open = False
        self._is_stopping = False
        self._is_empty = anyio.Event()
        self._accepting = 0
        """How many turns are being accepted: a request's transaction is under way."""

    @property
    def task_count(self) -> int:
        """How many tasks run turns, or follow those that run elsewhere."""
        return len(self._tasks) + len(self._followers)

    def start(self, live: LiveTurn, work: Coroutine[Any, Any, None]) -> None:
        """Start the task of a turn."""
        if not self._is_open:
            work.close()
            raise RuntimeError("the engine is not running")
        live.begin()
        if self._is_stopping:
            live.interrupt_for_shutdown()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def start_follower(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that waits for a turn of another server; shutdown does not wait for it."""
        scope = anyio.CancelScope()
        task = asyncio.get_running_loop().create_task(_run_in_scope(scope, work))
        self._followers[task] = scope
        task.add_done_callback(self._followers.pop)
        if self._is_stopping:
            scope.cancel()

    def counts(self) -> dict[str, int]:
        """Return how many turns run or wait in this process, by status."""
        counts = {TurnStatus.QUEUED.value: 0, TurnStatus.IN_PROGRESS.value: 0}
        for live in self._turns.values():
            status = live.record.status.value
            counts[status] = counts.get(status, 0) + 1
        return counts

    def drain(self) -> None:
        """Wake the followers, of which those of turns elsewhere leave, and stop soon."""
        self.draining.set()
        for live in self._turns.values():
            live.log.wake()

    @contextmanager
    def accepting(self) -> Generator[None]:
        """Keep tasks possible while a turn is accepted, whose task may start at the end."""
        self._accepting += 1
        try:
            yield
        finally:
            self._accepting -= 1
            self.turn_ended()

    def turn_ended(self) -> None:
        """Stop early while draining if no turn runs, or is accepted, any more."""
        if self.draining.is_set() and not self._has_work:
            self._is_empty.set()

    @property
    def _has_work(self) -> bool:
        """True if a turn runs here; a queued one waits for a turn here, or on another server."""
        return self._accepting > 0 or any(
            live.record.status is TurnStatus.IN_PROGRESS for live in self._turns.values()
        )

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Allow turns to start, until the server drains and all turns have ended."""
        self._is_open = True
        try:
            task_status.started()
            await self.draining.wait()
            with anyio.move_on_after(self._drain_seconds):
                if self._has_work:
                    await self._is_empty.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._stop_remaining()
            self._is_open = False
            self.stopped.set()

    async def _stop_remaining(self) -> None:
        self._is_stopping = True
        for scope in self._followers.values():
            scope.cancel()
        for live in list(self._turns.values()):
            if (
                live.record.status is TurnStatus.QUEUED
            ):  # stays queued in the database for the next server
                self._release(live)
            else:
                live.interrupt_for_shutdown()
        if self._followers:
            _, late = await asyncio.wait(set(self._followers), timeout=_FOLLOWERS_SECONDS)
            for task in late:
                task.cancel()
        while tasks := self._tasks | self._followers.keys():
            await asyncio.wait(tasks)


async def _run_in_scope(scope: anyio.CancelScope, work: Coroutine[Any, Any, None]) -> None:
    with scope:
        await work
