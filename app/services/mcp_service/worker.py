"""The worker process for MCP: connects to servers, lists their tools and calls them.

Started as `python -m app.services.mcp_service.worker` with frames on stdin and stdout
(`sandbox/frames.py`). It ends when its stdin ends. A step that computes for long, such as one of
the SDK that a server has led into a trap, ends the whole process.
"""

import asyncio
import logging
import os
import signal
import sys
from typing import Any

import anyio
from anyio.abc import TaskGroup

from app.services.mcp_service.limits import WorkerLimits, confine_worker, watch_loop
from app.services.sandbox.frames import Fields, encode_frame, receive_frame
from app.services.sandbox.limits import die_with_parent

_THREADS = 4
"""For names to be resolved."""


class EventWriter:
    """Writes frames to the server, one after the other."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._lock = anyio.Lock()

    async def send(self, fields: Fields, payload: bytes = b"") -> None:
        """Write one frame; ends the process where nobody reads any more."""
        async with self._lock:
            try:
                self._writer.write(encode_frame(fields, payload))
                await self._writer.drain()
            except OSError:
                os._exit(0)

    def send_at_once(self, fields: Fields) -> None:
        """Write a small frame without waiting."""
        self._writer.write(encode_frame(fields))


class McpWorker:
    """Serves one server process."""

    def __init__(self, reader: asyncio.StreamReader, frames: EventWriter) -> None:
        self._reader = reader
        self._frames = frames

    async def run(self) -> None:
        """Serve until the server closes the pipe."""
        frame = await receive_frame(self._reader)
        if frame is None:
            return
        opening, _ = frame
        try:
            from app.services.mcp_service.calls import CallServer
        except ImportError as error:
            await self._frames.send({"event": "missing", "package": error.name or "mcp"})
            return
        asyncio.get_running_loop().set_default_executor(_pool())
        confine_worker(WorkerLimits(**opening["limits"]))
        async with anyio.create_task_group() as tasks:
            server = CallServer(tasks, self._frames, opening)
            tasks.start_soon(watch_loop)
            tasks.start_soon(server.pool.close_idle)
            await self._frames.send({"event": "ready"})
            await self._serve(server, tasks)
            tasks.cancel_scope.cancel()

    async def _serve(self, server: Any, tasks: TaskGroup) -> None:  # noqa: ANN401  # of the SDK's side
        while frame := await receive_frame(self._reader):
            fields, _ = frame
            match fields["op"]:
                case "ping":
                    self._frames.send_at_once({"event": "pong"})
                case "cancel":
                    server.cancel(int(fields["id"]))
                case "answer":
                    server.answer(int(fields["id"]), fields)
                case _:
                    tasks.start_soon(server.serve, fields)


def _pool() -> Any:  # noqa: ANN401  # imported late
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(_THREADS)


async def _run(outlet: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(0), "rb", 0)
    )
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(outlet, "wb", 0)
    )
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    await McpWorker(reader, EventWriter(writer)).run()


def main() -> None:
    """Keep the pipes for frames alone, and serve."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # likewise: it closes the pipe once it is done
    logging.disable(logging.CRITICAL)  # the SDK logs what servers send
    outlet = os.dup(1)
    os.dup2(2, 1)
    try:
        asyncio.run(_run(outlet))
    except Exception as error:  # noqa: BLE001  # the last words of a process that ends below
        sys.stderr.write(f"the MCP worker ended: {type(error).__name__}\n")
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
