"""The tasks that turns run in, until the server shuts down."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from uuid import UUID

import anyio
from anyio.abc import TaskStatus

from app.models import TurnStatus
from app.services.turns.live import LiveTurn

DRAIN_SECONDS = 22
"""Leaves time to settle or give up what is cut off, within the 30 s of a shutdown."""
_FOLLOWERS_SECONDS = 2
"""How long a question to the database may still take; it may be away."""


class Running:
    """Lets turns run; once the server drains, for a while only. What is left then is cut off."""

    def __init__(
        self,
        turns: Mapping[UUID, LiveTurn],
        leave: Callable[[LiveTurn], None],
        drain_seconds: float,
    ) -> None:
        """`turns` are those that run or wait here; `leave` gives a waiting one up."""
        self.draining = anyio.Event()
        """Set once no turn is accepted any more."""
        self.stopped = anyio.Event()
        """Set once nothing runs any more."""
        self._turns = turns
        self._leave = leave
        self._drain_seconds = drain_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        """asyncio's own, for anyio's cost a twentieth of a turn."""
        self._followers: dict[asyncio.Task[None], anyio.CancelScope] = {}
        """Each with what ends it: asyncio's own cancellation breaks off in mid-question."""
        self._is_open = False
        self._is_cutting_off = False
        self._emptied = anyio.Event()

    def begin(self, live: LiveTurn, work: Coroutine[Any, Any, None]) -> None:
        """Run a turn."""
        if not self._is_open:
            work.close()
            raise RuntimeError("the engine is not running")
        live.begin()
        if self._is_cutting_off:
            live.cut_off()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def follow(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for a turn that runs elsewhere; shutdown does not wait for it."""
        scope = anyio.CancelScope()
        task = asyncio.get_running_loop().create_task(_inside(scope, work))
        self._followers[task] = scope
        task.add_done_callback(self._followers.pop)
        if self._is_cutting_off:
            scope.cancel()

    def drain(self) -> None:
        """Let go who follows a turn, and stop soon."""
        self.draining.set()
        for live in self._turns.values():
            live.log.wake()

    def notice_end(self) -> None:
        """Stop at once where the turn that has just left was the last."""
        if self.draining.is_set() and not self._turns:
            self._emptied.set()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Let turns begin, until the server drains and the last has ended or is cut off."""
        self._is_open = True
        try:
            task_status.started()
            await self.draining.wait()
            with anyio.move_on_after(self._drain_seconds):
                if self._turns:
                    await self._emptied.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._cut_off()
            self._is_open = False
            self.stopped.set()

    async def _cut_off(self) -> None:
        self._is_cutting_off = True
        for scope in self._followers.values():
            scope.cancel()
        for live in list(self._turns.values()):
            if live.record.status is TurnStatus.QUEUED:  # stays queued for who comes next
                self._leave(live)
            else:
                live.cut_off()
        if self._followers:
            _, late = await asyncio.wait(set(self._followers), timeout=_FOLLOWERS_SECONDS)
            for task in late:
                task.cancel()
        while tasks := self._tasks | self._followers.keys():
            await asyncio.wait(tasks)


async def _inside(scope: anyio.CancelScope, work: Coroutine[Any, Any, None]) -> None:
    with scope:
        await work
