"""Start processes of our own so that none is left behind."""

import asyncio
from asyncio.subprocess import Process
from typing import Any

import anyio


async def start_process(*command: str, **options: Any) -> Process:
    """Call `asyncio.create_subprocess_exec`; a cancellation waits until it has returned.

    Otherwise a process could run that no code has a handle of, and that nobody would end.
    """
    processes: list[Process] = []
    with anyio.CancelScope(shield=True):
        processes.append(await asyncio.create_subprocess_exec(*command, **options))
    return processes[0]
