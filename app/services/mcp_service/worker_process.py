"""The worker process for MCP as the server sees it: its pipes, and the requests it has in hand."""

import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress

import anyio

from app.services.mcp_port import McpProgress, OnProgress
from app.services.sandbox.environment import minimal_environment
from app.services.sandbox.frames import Fields, encode_frame, receive_frame
from app.services.sandbox.subprocesses import start_process

_READ_BYTES = 1 << 20
_TLS_ROOTS = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_FEW_ARENAS = {"MALLOC_ARENA_MAX": "2"}
"""Each reserves 64 MB of address space, which the limit of memory counts."""


class WorkerRequest:
    """One request that the worker has in hand."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.on_progress = on_progress
        self.changed = anyio.Event()
        self.question: Fields | None = None
        self.end: Fields | None = None
        self.images = b""
        """Of its result, one after the other."""

    def take(self, fields: Fields) -> None:
        """Take an event of the worker's about it."""
        match fields["event"]:
            case "progress":
                if self.on_progress:
                    self.on_progress(
                        McpProgress(fields["progress"], fields["total"], fields["message"])
                    )
                return
            case "question":
                self.question = fields["question"]
            case _:
                self.end = fields
        self.changed.set()


class McpWorkerProcess:
    """A living worker process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.started = anyio.Event()
        """Set once it is ready, or has ended."""
        self.is_ready = False
        self.missing: str | None = None
        """The package that it lacks."""
        self.requests: dict[int, WorkerRequest] = {}
        self.heard_at = time.monotonic()

    def post(self, fields: Fields) -> None:
        """Send a frame; nothing happens where the worker is gone."""
        assert self.process.stdin is not None  # noqa: S101  # it was made with a pipe
        if not self.process.stdin.is_closing():
            self.process.stdin.write(encode_frame(fields))

    def kill(self) -> None:
        """End it at once; its reader notices."""
        with suppress(ProcessLookupError):
            self.process.kill()


async def spawn_worker() -> Process:
    """Start a worker process. Raises `OSError`."""
    return await start_process(
        sys.executable,
        "-m",
        "app.services.mcp_service.worker",
        stdin=PIPE,
        stdout=PIPE,
        env=minimal_environment(_TLS_ROOTS, added=_FEW_ARENAS),
        limit=_READ_BYTES,
    )


async def carry_events(worker: McpWorkerProcess) -> None:
    """Take what the worker says until it ends, or says what no worker says."""
    stream = worker.process.stdout
    assert stream is not None  # noqa: S101  # it was made with a pipe
    try:
        while frame := await receive_frame(stream):
            fields, payload = frame
            worker.heard_at = time.monotonic()
            if fields["event"] == "missing":
                worker.missing = str(fields["package"])
                return
            _take(worker, fields, payload)
    except (KeyError, TypeError, ValueError):  # what it read has taken it over
        worker.kill()


def _take(worker: McpWorkerProcess, fields: Fields, payload: bytes) -> None:
    match fields["event"]:
        case "ready":
            worker.is_ready = True
            worker.started.set()
        case "pong":
            pass
        case _:
            if request := worker.requests.get(int(fields["id"])):
                request.images = payload
                request.take(fields)
