"""Jobs that wait: workspaces take turns, and the callers of each."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio

from app.core.errors import AppError
from app.services.sandbox.errors import TooManyJobs, WorkerBusy
from app.services.sandbox.frames import Fields

CallerKey: TypeAlias = tuple[str, str]
"""A workspace, and who asks in it: a key, an end user, or neither."""

_MEGABYTE = 1 << 20
TOTAL_JOBS, TOTAL_BYTES = 512, 256 * _MEGABYTE
CALLER_JOBS, CALLER_BYTES = 64, 64 * _MEGABYTE


class JobCrashed(Exception):
    """The job's process ended without an answer: it was over a limit, or broke."""

    def __init__(self, reason: str, cpu_seconds: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cpu_seconds = cpu_seconds


@dataclass(frozen=True, slots=True)
class JobOutput:
    """What a job answered, which is as trustworthy as the bytes that it read."""

    fields: Fields
    payload: bytes
    cpu_seconds: float


@dataclass(slots=True, eq=False)
class Job:
    """One job, from its request to its end."""

    caller: CallerKey
    function: str
    fields: Fields
    payload: bytes
    attempts: int = 0
    started: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    output: JobOutput | None = None
    error: AppError | JobCrashed | None = None

    def end(self, result: JobOutput | AppError | JobCrashed) -> None:
        """Wake who waits for it."""
        if isinstance(result, JobOutput):
            self.output = result
        else:
            self.error = result
        self.started.set()
        self.ended.set()


class FairQueue:
    """What waits to be run."""

    def __init__(self) -> None:
        self._workspaces: OrderedDict[str, OrderedDict[CallerKey, deque[Job]]] = OrderedDict()
        self._jobs = 0
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many wait."""
        return self._jobs

    def add(self, job: Job) -> None:
        """Let `job` wait behind its caller's others. Raises `TooManyJobs` or `WorkerBusy`."""
        own = self._waiting_of(job.caller) or ()
        own_bytes = sum(len(waiting.payload) for waiting in own)
        if own and (len(own) >= CALLER_JOBS or own_bytes + len(job.payload) > CALLER_BYTES):
            raise TooManyJobs("Wait until your other uploads are read.", retry_after_seconds=2)
        if self._jobs >= TOTAL_JOBS or self._bytes + len(job.payload) > TOTAL_BYTES:
            raise WorkerBusy("Too many uploads wait on this server.", retry_after_seconds=2)
        self._line_of(job.caller).append(job)
        self._count(job, 1)

    def put_back(self, job: Job) -> None:
        """Let a job that was taken wait again, before its caller's others."""
        self._line_of(job.caller).appendleft(job)
        self._count(job, 1)

    def take(self, may_start: Callable[[CallerKey], bool]) -> Job | None:
        """Return the next job whose caller may start one, and let others be before them next."""
        for workspace, callers in self._workspaces.items():
            for caller, jobs in callers.items():
                if not may_start(caller):
                    continue
                job = jobs.popleft()
                callers.move_to_end(caller)
                self._workspaces.move_to_end(workspace)
                self._forget_if_empty(caller)
                self._count(job, -1)
                return job
        return None

    def remove(self, job: Job) -> None:
        """Forget a job, if it waits."""
        jobs = self._waiting_of(job.caller)
        if jobs and job in jobs:
            jobs.remove(job)
            self._forget_if_empty(job.caller)
            self._count(job, -1)

    def take_all(self) -> list[Job]:
        """Return everything that waits, and be empty."""
        jobs: list[Job] = []
        while job := self.take(lambda _caller: True):
            jobs.append(job)
        return jobs

    def _waiting_of(self, caller: CallerKey) -> deque[Job] | None:
        callers = self._workspaces.get(caller[0])
        return callers.get(caller) if callers else None

    def _line_of(self, caller: CallerKey) -> deque[Job]:
        callers = self._workspaces.setdefault(caller[0], OrderedDict())
        return callers.setdefault(caller, deque())

    def _forget_if_empty(self, caller: CallerKey) -> None:
        callers = self._workspaces[caller[0]]
        if not callers[caller]:
            del callers[caller]
        if not callers:
            del self._workspaces[caller[0]]

    def _count(self, job: Job, sign: int) -> None:
        self._jobs += sign
        self._bytes += sign * len(job.payload)
