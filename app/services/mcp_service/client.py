"""The server's side of the worker process for MCP: starts it, watches it, and waits for answers."""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any, Self
from uuid import UUID

import anyio
from anyio.abc import TaskGroup

from app.services.mcp_port import (
    ListedTool,
    McpAuthorization,
    McpCall,
    McpError,
    McpFailure,
    McpGranted,
    McpListing,
    McpQuestion,
    McpResult,
    McpTarget,
    OnProgress,
)
from app.services.mcp_service.limits import WorkerLimits
from app.services.mcp_service.worker_process import (
    McpWorkerProcess,
    WorkerRequest,
    carry_events,
    spawn_worker,
)
from app.services.sandbox.frames import Fields
from app.services.sandbox.subprocesses import end_process

logger = logging.getLogger(__name__)

WORKSPACE_AT_ONCE = 16
TOTAL_AT_ONCE = 64
WORKSPACE_WAITING = 64
_LIST_BYTES = 1 << 20
_GRACE_SECONDS = 5.0
"""What a request may take longer than it was given, until the worker counts as hung."""
_PARKED_SECONDS = 600.0
"""How long a server of the older era waits for the answer to its question."""
_MOST_PARKED = 64
_START_SECONDS = 60.0
_PING_SECONDS = 3.0
_SILENT_SECONDS = 20.0
_BACKOFF_SECONDS = (0.0, 0.2, 1.0, 2.0, 5.0, 15.0)
_STEADY_SECONDS = 10.0


class _Parked:
    """A call whose server waits for an answer, on a connection that stays open."""

    def __init__(self, worker: McpWorkerProcess, number: int, request: WorkerRequest) -> None:
        self.worker = worker
        self.number = number
        self.request = request
        self.since = time.monotonic()


class McpWorkerClient:
    """Fulfils the port `McpClient`; an async context manager, to be used inside only.

    The process starts at the first request, and again after it has ended.
    """

    def __init__(
        self,
        allowed_addresses: str = "",
        proxy: str | None = None,
        *,
        programs: Mapping[str, Any] | None = None,
        limits: WorkerLimits | None = None,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        self._opening: Fields = {
            "op": "open",
            "allowed_addresses": allowed_addresses,
            "proxy": proxy,
            "limits": (limits or WorkerLimits()).to_fields(),
        }
        self._programs = dict(programs or {})
        self._silent_seconds = silent_seconds
        self._numbers = itertools.count(1)
        self._tasks: TaskGroup | None = None
        self._worker: McpWorkerProcess | None = None
        self._total = asyncio.Semaphore(TOTAL_AT_ONCE)
        self._of_workspace: dict[UUID, asyncio.Semaphore] = {}
        self._users: Counter[UUID] = Counter()
        self._parked: dict[UUID, _Parked] = {}
        self._starting = anyio.Lock()
        self._failures = 0
        self._no_start_before = 0.0

    async def __aenter__(self) -> Self:
        """Be ready for requests; no process is started."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process, and what it has in hand."""
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, `None` while there is none."""
        return self._worker.process.pid if self._worker else None

    def programs(self) -> Sequence[str]:
        """See `McpClient.programs`."""
        return tuple(self._programs)

    async def list_tools(self, target: McpTarget, timeout_seconds: float) -> McpListing:
        """See `McpClient.list_tools`."""
        fields: Fields = {"op": "list", "max_bytes": _LIST_BYTES}
        end = await self._run(target, fields, timeout_seconds, None, None)
        try:
            tools = [ListedTool(**tool) for tool in end["tools"]]
            names = (end["protocol_version"], end["server_name"], end["server_version"])
            return McpListing(*names, tools)
        except (KeyError, TypeError):
            raise _not_understood() from None

    async def authorize(
        self, authorization: McpAuthorization, timeout_seconds: float
    ) -> McpGranted:
        """See `McpClient.authorize`."""
        fields: Fields = {"op": "oauth", **asdict(authorization)}
        end = await self._run(authorization.target, fields, timeout_seconds, None, None)
        try:
            return McpGranted(end["grant"], end.get("url"))
        except KeyError:
            raise _not_understood() from None

    async def call(
        self, call: McpCall, on_progress: OnProgress | None = None
    ) -> McpResult | McpQuestion:
        """See `McpClient.call`."""
        answer = (
            {"action": call.answer.action, "content": call.answer.content} if call.answer else None
        )
        if answer is not None and call.question is not None and "key" not in call.question:
            return await self._go_on(call, answer, on_progress)
        fields: Fields = {
            "op": "call",
            "tool": call.tool,
            "arguments": call.arguments,
            "max_bytes": call.max_bytes,
            "max_image_bytes": call.max_image_bytes,
            "meta": dict(call.meta),
            "question": dict(call.question) if call.question else None,
            "answer": answer,
        }
        end = await self._run(call.target, fields, call.timeout_seconds, on_progress, call.id)
        return _outcome(end)

    async def _run(
        self,
        target: McpTarget,
        fields: Fields,
        timeout_seconds: float,
        on_progress: OnProgress | None,
        call_id: UUID | None,
    ) -> Fields:
        """Have the worker serve a request, in turn with others; return its end or question."""
        workspace = target.workspace_id
        if self._users[workspace] >= WORKSPACE_AT_ONCE + WORKSPACE_WAITING:
            raise McpError(McpFailure.BUSY, "Too many calls of MCP servers wait.")
        own = self._of_workspace.setdefault(workspace, asyncio.Semaphore(WORKSPACE_AT_ONCE))
        self._users[workspace] += 1
        began_at = time.monotonic()
        try:
            async with own, self._total:
                left = timeout_seconds - (time.monotonic() - began_at)
                if left <= 0:
                    raise McpError(McpFailure.BUSY, "Too many calls of MCP servers were before it.")
                worker = await self._ready_worker()
                return await self._ask(worker, target, fields, left, on_progress, call_id)
        finally:
            self._users[workspace] -= 1
            if not self._users[workspace]:
                del self._users[workspace], self._of_workspace[workspace]

    async def _ask(  # noqa: PLR0913, PLR0917  # what a request is
        self,
        worker: McpWorkerProcess,
        target: McpTarget,
        fields: Fields,
        timeout_seconds: float,
        on_progress: OnProgress | None,
        call_id: UUID | None,
    ) -> Fields:
        number, request = next(self._numbers), WorkerRequest(on_progress)
        worker.requests[number] = request
        sent = {"id": number, "target": self._target(target), "timeout_seconds": timeout_seconds}
        worker.post({**fields, **sent})
        return await self._wait(worker, number, request, timeout_seconds, call_id)

    async def _wait(
        self,
        worker: McpWorkerProcess,
        number: int,
        request: WorkerRequest,
        timeout_seconds: float,
        call_id: UUID | None,
    ) -> Fields:
        """Wait for the end of a request, or a question; raise `McpError` for a failure."""
        is_parked = False
        try:
            with anyio.move_on_after(timeout_seconds + _GRACE_SECONDS):
                await request.changed.wait()
            if request.end is None and request.question is None:
                worker.kill()  # it hangs: it has a time-out of its own
                raise McpError(McpFailure.TIMEOUT, "It did not answer in time.", was_sent=True)
            if request.end is None and request.question is not None and call_id is not None:
                is_parked = self._park(call_id, _Parked(worker, number, request))
                if is_parked:
                    return {"question": request.question}
                raise McpError(McpFailure.BUSY, "Too many questions wait.", was_sent=True)
            return _checked(request.end or {}) | {"images": request.images}
        finally:
            if not is_parked:
                worker.requests.pop(number, None)
                if request.end is None:
                    worker.post({"op": "cancel", "id": number})

    def _park(self, call_id: UUID, parked: _Parked) -> bool:
        self._drop_old_questions()
        if len(self._parked) >= _MOST_PARKED:
            return False
        parked.request.changed = anyio.Event()
        self._parked[call_id] = parked
        return True

    def _drop_old_questions(self) -> None:
        oldest = time.monotonic() - _PARKED_SECONDS
        for key, each in list(self._parked.items()):
            if each.since < oldest or each.request.end is not None:
                self._unpark(key)

    def _unpark(self, call_id: UUID) -> None:
        parked = self._parked.pop(call_id)
        parked.worker.requests.pop(parked.number, None)
        parked.worker.post({"op": "cancel", "id": parked.number})

    async def _go_on(
        self, call: McpCall, answer: Fields, on_progress: OnProgress | None
    ) -> McpResult | McpQuestion:
        """Give the answer to a server that waits for it on an open connection."""
        parked = self._parked.pop(call.id, None)
        if parked is None or parked.request.end is not None or parked.worker is not self._worker:
            message = "The connection on which the server waited for the answer is gone."
            raise McpError(McpFailure.BROKEN, message, was_sent=True)
        request = parked.request
        request.question, request.on_progress = None, on_progress
        parked.worker.post({"op": "answer", "id": parked.number, **answer})
        return _outcome(
            await self._wait(parked.worker, parked.number, request, call.timeout_seconds, call.id)
        )

    def _target(self, target: McpTarget) -> Fields:
        fields: Fields = {"workspace": str(target.workspace_id)}
        if target.program is not None:
            return fields | {"program": self._programs[target.program]}
        return fields | {"url": target.url, "headers": dict(target.headers)}

    async def _ready_worker(self) -> McpWorkerProcess:
        """Return the worker, started if there is none. Raises `McpError`."""
        if self._tasks is None:
            raise McpError(McpFailure.UNAVAILABLE, "This server is not running.")
        worker = self._worker
        if worker is None:
            if time.monotonic() < self._no_start_before:
                raise McpError(McpFailure.UNAVAILABLE, "The process for MCP does not start.")
            worker = await self._start()
        with anyio.move_on_after(_START_SECONDS):
            await worker.started.wait()
        if not worker.is_ready:
            message = (
                f"The package {worker.missing} is missing: install `agent-platform[mcp]`."
                if worker.missing
                else "The process for MCP does not start."
            )
            raise McpError(McpFailure.UNAVAILABLE, message)
        return worker

    async def _start(self) -> McpWorkerProcess:
        async with self._starting:
            if self._worker is not None:  # another request was faster
                return self._worker
            with anyio.CancelScope(shield=True):  # cancelled in between, it would be left unended
                await self._start_one()
        worker = self._worker
        if worker is None:
            raise McpError(McpFailure.UNAVAILABLE, "The process for MCP does not start.")
        return worker

    async def _start_one(self) -> None:
        try:
            process = await spawn_worker()
        except OSError as error:
            logger.error("the MCP worker process cannot be started: %s", error)  # noqa: TRY400
            return
        if self._tasks is None:
            await end_process(process)
            return
        worker = self._worker = McpWorkerProcess(process)
        worker.post(self._opening)
        self._tasks.start_soon(self._live, worker)

    async def _live(self, worker: McpWorkerProcess) -> None:
        """Carry the worker's events until it ends; then end what it had in hand."""
        began_at = time.monotonic()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch, worker)
                await carry_events(worker)
                group.cancel_scope.cancel()
        finally:
            self._worker = None if self._worker is worker else self._worker
            self._note_end(worker, time.monotonic() - began_at)
            lost = {"failure": McpFailure.BROKEN, "message": _ENDED, "was_sent": True}
            for request in list(worker.requests.values()):
                request.take({"event": "end", **lost})
            worker.started.set()
            await end_process(worker.process)

    def _note_end(self, worker: McpWorkerProcess, lived_seconds: float) -> None:
        if self._tasks is None:
            return
        is_steady = worker.is_ready and lived_seconds > _STEADY_SECONDS
        self._failures = 0 if is_steady else self._failures + 1
        pause = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)]
        self._no_start_before = time.monotonic() + (pause if self._failures > 1 else 0.0)
        if worker.missing is None:
            logger.error("the MCP worker process ended; %s requests failed", len(worker.requests))

    async def _watch(self, worker: McpWorkerProcess) -> None:
        """Kill a worker that answers no pings, once it is ready."""
        await worker.started.wait()
        while True:
            await anyio.sleep(min(_PING_SECONDS, self._silent_seconds / 4))
            self._drop_old_questions()
            if not worker.requests:
                worker.heard_at = time.monotonic()
                continue
            if time.monotonic() - worker.heard_at > self._silent_seconds:
                logger.error("the MCP worker process hangs, and is killed")
                worker.kill()
                return
            worker.post({"op": "ping"})


_ENDED = "The process that reads what MCP servers send ended."


def _checked(end: Fields) -> Fields:
    """Return the end of a request that succeeded. Raises `McpError`."""
    if failure := end.get("failure"):
        raise McpError(
            McpFailure(failure),
            str(end["message"]),
            was_sent=bool(end.get("was_sent")),
            answer=str(end.get("answer") or ""),
        )
    return end


def _outcome(end: Fields) -> McpResult | McpQuestion:
    try:
        if question := end.get("question"):
            return McpQuestion(**question)
        result = end["result"]
        images = BytesIO(end["images"])
        return McpResult(
            bool(result["is_error"]),
            str(result["text"]),
            result["structured"],
            tuple(images.read(size) for size in end["image_bytes"]),
        )
    except (KeyError, TypeError):
        raise _not_understood() from None


def _not_understood() -> McpError:
    """Return the error of a worker that says what no worker says."""
    return McpError(McpFailure.BROKEN, "The process for MCP was not understood.", was_sent=True)
