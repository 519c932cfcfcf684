"""Start processes of our own so that none is left behind."""

import asyncio
from asyncio.subprocess import Process
from contextlib import suppress
from typing import Any

import anyio

_END_SECONDS = 2.0


async def start_process(*command: str, **options: Any) -> Process:
    """Call `asyncio.create_subprocess_exec`; a cancellation waits until it has returned.

    Otherwise a process could run that no code has a handle of, and that nobody would end.
    """
    processes: list[Process] = []
    with anyio.CancelScope(shield=True):
        processes.append(await asyncio.create_subprocess_exec(*command, **options))
    return processes[0]


async def end_process(process: Process) -> None:
    """Close its stdin, which is its sign to go, and kill it after 2 s; not to be cancelled."""
    with anyio.CancelScope(shield=True):
        if process.stdin is not None:
            process.stdin.close()
        with anyio.move_on_after(_END_SECONDS):
            await process.wait()
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
