"""The server's side: who runs next, and the worker process that runs them."""

import itertools
import logging
import os
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Sequence
from typing import Self

import anyio
from anyio.abc import TaskGroup

from app.services.sandbox.environment import minimal_environment
from app.services.sandbox.errors import WorkerUnavailable
from app.services.sandbox.fair_queue import CallerKey, FairQueue, Job, JobCrashed, JobOutput
from app.services.sandbox.frames import (
    Fields,
    ProtocolBroken,
    decode_frame,
    encode_frame,
    receive_frame,
)
from app.services.sandbox.limits import JobLimits
from app.services.sandbox.subprocesses import end_process, start_process

logger = logging.getLogger(__name__)

TOTAL_AT_ONCE = 16
"""Jobs that run; the kernel shares the processors among them, and long ones yield to short ones."""
WORKSPACE_AT_ONCE = 12
BACKOFF_SECONDS = (0.0, 0.2, 1.0, 2.0, 5.0, 15.0)
_STEADY_SECONDS = 10.0
"""A worker that lived this long starts the back-off anew."""
_ATTEMPTS = 2
"""A job whose worker is killed under it is run once more."""
_SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""A process with threads cannot be forked safely."""
_READ_BYTES = 1 << 20


class _Worker:
    """A living worker process, and the jobs that it runs."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.is_ready = False
        self.jobs: dict[int, Job] = {}

    def post(self, fields: Fields, payload: bytes = b"") -> None:
        """Send a frame, whole; nothing happens where the worker is gone."""
        assert self.process.stdin is not None  # noqa: S101  # it was made with a pipe
        if not self.process.stdin.is_closing():
            self.process.stdin.write(encode_frame(fields, payload))


class Sandbox:
    """Runs functions on foreign bytes in a worker process; an async context manager.

    The process starts at the first job, or with `start`, and is started again when it dies.
    `warm_up` names functions, as `module:function`, that it calls first: they import what jobs
    need, for a job can open no file. Enter and leave it in the same task.
    """

    def __init__(self, warm_up: Sequence[str], limits: JobLimits | None = None) -> None:
        self._warm_up = tuple(warm_up)
        self._limits = limits or JobLimits()
        self._queue = FairQueue()
        self._worker: _Worker | None = None
        self._first_job_queued = anyio.Event()
        self._numbers = itertools.count(1)
        self._tasks: TaskGroup | None = None
        self.restarts = 0
        """How often the process was started again."""
        self._processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1

    async def __aenter__(self) -> Self:
        """Be ready for jobs; no process is started."""
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_alive)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the process and every job within 4 s."""
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)
        self._refuse_waiting()

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, `None` while there is none."""
        return self._worker.process.pid if self._worker else None

    @property
    def is_ready(self) -> bool:
        """True while the worker takes jobs."""
        return self._worker is not None and self._worker.is_ready

    @property
    def running_count(self) -> int:
        """How many jobs the worker has in hand."""
        return len(self._worker.jobs) if self._worker else 0

    @property
    def waiting_count(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    def start(self) -> None:
        """Start the process, if it was not: the first job will find it there."""
        self._first_job_queued.set()

    async def run(
        self, function: str, fields: Fields, payload: bytes, caller: CallerKey
    ) -> JobOutput:
        """Run `function` (`module:function`) in the worker and return what it returned.

        Callers take turns. Cancelled, the job ends at once. Raises `JobCrashed` where it did not
        answer, and `TooManyJobs`, `WorkerBusy` or `WorkerUnavailable` where it could not run.
        """
        if self._tasks is None:
            raise WorkerUnavailable("This server is not running.", retry_after_seconds=1)
        job = Job(caller, function, fields, payload)
        self._queue.add(job)
        self.start()
        self._dispatch()
        try:
            await job.started.wait()
            with anyio.move_on_after(self._limits.wall_seconds):
                await job.ended.wait()
        finally:
            self._abandon(job)
        if job.output:
            return job.output
        raise job.error or JobCrashed("it took too long", self._limits.wall_seconds)

    def _abandon(self, job: Job) -> None:
        if job.ended.is_set():
            return
        job.ended.set()
        self._queue.remove(job)
        worker = self._worker
        for number in [n for n, own in worker.jobs.items() if own is job] if worker else ():
            assert worker  # noqa: S101  # the line above
            worker.post({"op": "cancel", "id": number})  # its end is still to come, and counts

    def _dispatch(self) -> None:
        """Start whatever may be started."""
        worker = self._worker
        if worker is None or not worker.is_ready:
            return
        while job := self._queue.take(lambda caller: self._may_start(worker, caller)):
            number = next(self._numbers)
            worker.jobs[number] = job
            job.attempts += 1
            job.started.set()
            request = {
                "op": "run",
                "id": number,
                "caller": " ".join(job.caller),
                "function": job.function,
                "fields": job.fields,
            }
            worker.post(request, job.payload)

    def _may_start(self, worker: _Worker, caller: CallerKey) -> bool:
        """Nobody takes more than what is idle, but everybody may have one."""
        running = worker.jobs.values()
        if len(running) < self._processors:
            return True
        callers = Counter(job.caller for job in running)
        in_workspace = sum(count for key, count in callers.items() if key[0] == caller[0])
        return (
            len(running) < TOTAL_AT_ONCE
            and in_workspace < WORKSPACE_AT_ONCE
            and not callers[caller]
        )

    async def _keep_alive(self) -> None:
        """Run workers, one after the other, from the first time that one is wanted."""
        await self._first_job_queued.wait()
        failures = 0
        while True:
            began = time.monotonic()
            was_ready = False
            try:
                was_ready = await self._run_worker()
            except OSError as error:
                logger.error("the worker process cannot be started: %s", error)  # noqa: TRY400
            failures = 0 if time.monotonic() - began > _STEADY_SECONDS else failures + 1
            pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1] if failures else 0.0
            logger.error("the worker process ended; it is started again in %s s", pause)
            if not was_ready:
                self._refuse_waiting()
            await anyio.sleep(pause)
            self.restarts += 1

    async def _run_worker(self) -> bool:
        """Start a worker and carry its events until it ends; tell whether it was ever ready."""
        process = await start_process(
            sys.executable,
            "-m",
            "app.services.sandbox.worker",
            stdin=PIPE,
            stdout=PIPE,
            env=minimal_environment(added=_SINGLE_THREADED),
            limit=_READ_BYTES,
        )
        worker = self._worker = _Worker(process)
        try:
            limits = self._limits.to_fields()
            worker.post({"op": "open", "warm_up": self._warm_up, "limits": limits})
            await self._carry_events(worker)
        finally:
            self._worker = None
            self._rescue(worker)
            await end_process(process)
        return worker.is_ready

    async def _carry_events(self, worker: _Worker) -> None:
        stream = worker.process.stdout
        assert stream is not None  # noqa: S101  # it was made with a pipe
        while frame := await receive_frame(stream):
            fields, payload = frame
            if fields["event"] == "ready":
                worker.is_ready = True
            else:
                worker.jobs.pop(int(fields["id"])).end(_result(fields, payload))
            self._dispatch()

    def _rescue(self, worker: _Worker) -> None:
        """Let jobs wait again whose worker ended under them."""
        for job in reversed(worker.jobs.values()):
            if job.ended.is_set():  # nobody waits for it any more
                continue
            if job.attempts < _ATTEMPTS:
                self._queue.put_back(job)
            else:
                job.end(_unavailable())

    def _refuse_waiting(self) -> None:
        for job in self._queue.take_all():
            job.end(_unavailable())


def _result(fields: Fields, payload: bytes) -> JobOutput | JobCrashed:
    """Read what a job has left behind; nothing of it is trusted."""
    cpu_seconds = float(fields["cpu_seconds"])
    if reason := fields.get("reason"):
        return JobCrashed(str(reason), cpu_seconds)
    try:
        answer, body = decode_frame(payload)
    except ProtocolBroken as error:
        return JobCrashed(str(error), cpu_seconds)
    if job_error := answer.get("job_error"):
        return JobCrashed(str(job_error), cpu_seconds)
    return JobOutput(answer, body, cpu_seconds)


def _unavailable() -> WorkerUnavailable:
    return WorkerUnavailable("Uploads cannot be read at the moment.", retry_after_seconds=5)
