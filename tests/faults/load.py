"""Clients that talk without a pause, each in sessions of its own."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from tests.faults.recorder import Message, Recorder

_PATIENCE_SECONDS = 2.5
_LEFT_BEHIND_LIMIT = 3
_TOO_LATE_SECONDS = 15


class Load:
    """Stops talking when told; what was sent is insisted upon until it is acknowledged."""

    def __init__(self, recorder: Recorder, agent_id: str, group: TaskGroup) -> None:
        self._recorder = recorder
        self._agent_id = agent_id
        self._group = group
        self._is_stopping = False
        self._unfinished: dict[str, Message] = {}

    @property
    def unfinished(self) -> list[str]:
        """What is sent and not acknowledged, and what its sender was told last."""
        return [
            f"{message.content!r} (turn {message.turn_id}) is not acknowledged: "
            f"{len(message.told)} attempts, at last {[str(told) for told in message.told[-3:]]}"
            for message in self._unfinished.values()
        ]

    def stop(self) -> None:
        """Begin no further message."""
        self._is_stopping = True

    async def settle(self, seconds: float) -> list[str]:
        """Wait until everything is acknowledged; return what is not, in time."""
        self.stop()
        with anyio.move_on_after(seconds):
            while self._unfinished:
                await anyio.sleep(0.02)
        return self.unfinished

    async def talk(self) -> None:
        """Be one client. One that waits long for an answer goes on in another session."""
        left_behind = anyio.Semaphore(_LEFT_BEHIND_LIMIT)
        rng = self._recorder.rng
        while not self._is_stopping:
            session_id = await self._recorder.open_session(self._agent_id)
            for _ in range(rng.randrange(2, 9)):
                await left_behind.acquire()
                if self._is_stopping:
                    return
                message = self._recorder.compose(session_id, streams=rng.random() < 0.5)
                self._unfinished[message.key] = message
                self._group.start_soon(self._insist, message, left_behind)
                with anyio.move_on_after(_PATIENCE_SECONDS):
                    await message.done.wait()
                if not message.done.is_set():
                    break

    async def _insist(self, message: Message, left_behind: anyio.Semaphore) -> None:
        await self._recorder.insist(message)
        del self._unfinished[message.key]
        left_behind.release()


@asynccontextmanager
async def load(recorder: Recorder, clients: int) -> AsyncGenerator[Load]:
    """Let so many clients talk while the block runs; at its end nobody is waited for."""
    agent_id = await recorder.make_agent()
    async with anyio.create_task_group() as group:
        talking = Load(recorder, agent_id, group)
        for _ in range(clients):
            group.start_soon(talking.talk)
        yield talking
        group.cancel_scope.cancel()


async def seconds_until_answered(recorder: Recorder, agent_id: str) -> float:
    """Send a new message in a new session until it is answered, or much too late."""
    begun_at = time.monotonic()
    with anyio.move_on_after(_TOO_LATE_SECONDS):
        session_id = await recorder.open_session(agent_id)
        await recorder.insist(recorder.compose(session_id, streams=False))
    return time.monotonic() - begun_at
