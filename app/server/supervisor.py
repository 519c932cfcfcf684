"""Several processes that do the same work, forked from a parent that watches over them.

The parent does none of the work, and opens nothing but what its children share. It has imported
everything, so that a child begins in milliseconds and shares the memory of it. POSIX only.
"""

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

logger = logging.getLogger(__name__)

Work = Callable[[], int]
"""What a child does, and the exit status that comes of it. It has Python's own signal handlers."""

_STEADY_SECONDS = 10.0
"""A child that lived this long is replaced at once; one that did not, after a growing pause."""
_PAUSES_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0)
_READY_SECONDS = 60.0
"""A replacement that does not serve by then is ended, and the workers before it stay."""
RETIRE = signal.SIGUSR1 if sys.platform != "win32" else signal.SIGTERM
"""Asks a worker to take no more connections, and to end once those that it has are at rest."""
HANDLED = (
    frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP))
    if sys.platform != "win32"
    else frozenset((signal.SIGTERM, signal.SIGINT))
)
_ENDED_WELL = frozenset((0, -signal.SIGTERM, -signal.SIGINT))
_FAILED = 1


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a supervisor that replaced itself leaves to its successor, which has its process id."""

    workers: Mapping[int, int]
    """The slot of each worker, by process id."""
    descriptors: Sequence[int]
    """Open as long as these workers live: they end when nobody has them open."""


Reload = Callable[[Inherited], None]
"""Replaces the running program by a new start of it; returns only where that is not possible."""


@dataclass(frozen=True, slots=True)
class _Child:
    slot: int
    begins_at: float
    """By `time.monotonic`."""
    short_lives: int
    """How many before it ended soon after their start."""
    is_replacement: bool


class Supervisor:
    """Keeps `count` children at `work`, until SIGTERM or SIGINT ends them all.

    A child that ends by itself is replaced, whatever its status. Only where one of the first
    ends with `refusal`, which the others would, too, all are ended. On SIGHUP the program is
    started again in the same process, and its children are replaced one after the other: each
    has said that it is ready before the one that it replaces is asked to retire.
    """

    def __init__(  # noqa: PLR0913  # keyword arguments
        self,
        work: Work,
        count: int,
        *,
        refusal: int,
        stop_seconds: float,
        reload: Reload | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        """`stop_seconds` after SIGTERM what is left of the children is killed."""
        self.slot = 0
        """In a child: which of the `count` it is."""
        self._reload = reload
        self._inherited = inherited or Inherited({}, ())
        self._reload_requested = False
        self._retired: set[int] = set()
        """Children that are not to be replaced when they end."""
        self._ready: int | None = None
        self._wakeup, self._waker = os.pipe()
        self._work = work
        self._count = count
        self._refusal = refusal
        self._stop_seconds = stop_seconds
        self._children: dict[int, _Child] = {}
        self._is_stopping = False
        self._status = 0
        self._parent_lives, self._parent_holds = os.pipe()

    def run(self, prepare: Work) -> int:
        """Let one child `prepare`, then start the others; return the exit status of it all.

        Call it in a main thread without other threads; it sets signal handlers for good.
        """
        self._handle_signals()
        for pid, slot in self._inherited.workers.items():
            self._children[pid] = _Child(slot, time.monotonic(), 0, is_replacement=True)
        preparing = self._start(prepare)
        self._retired.add(preparing)
        is_prepared = False
        while preparing in self._children:
            pid, status = self._wait()
            if pid == preparing and status and not self._inherited.workers:
                return 0 if self._is_stopping else max(status, _FAILED)
            self._reap(pid, status)
            is_prepared = pid == preparing and not status
        if not self._inherited.workers:
            for slot in range(self._count):
                self._start(self._work, slot)
        elif is_prepared:
            self._replace_all()
        else:
            logger.error("The new start failed: the workers stay as they are")
        while self._children:
            self._reap(*self._wait())
        return self._status

    def notify_ready(self) -> None:
        """In a child: say that it serves."""
        if self._ready is not None:
            os.write(self._ready, b"1")
            os.close(self._ready)
            self._ready = None

    def _handle_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        # At a terminal that is closed, everything ends as usual.
        if self._reload and not os.isatty(0):
            signal.signal(signal.SIGHUP, self._request_reload)
        os.set_blocking(self._waker, False)
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _wake_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)  # as `reload` blocks them

    def _request_reload(self, _number: int, _frame: FrameType | None) -> None:
        self._reload_requested = True

    def _wait(self) -> tuple[int, int]:
        """Wait for a child to end; return its process id and status, negative for a signal.

        Meanwhile start again where that is asked for.
        """
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                return pid, os.waitstatus_to_exitcode(status)
            if self._reload_requested and not self._is_stopping and self._reload:
                self._reload_requested = False
                workers = {pid: child.slot for pid, child in self._children.items()}
                holds = (self._parent_holds, *self._inherited.descriptors)
                self._reload(Inherited(workers, holds))
                logger.error("The new start failed: the workers stay as they are")
            self._sleep()

    def _sleep(self, *others: int, seconds: float | None = None) -> list[int]:
        """Sleep until a signal comes or one of `others` can be read; return which of these."""
        readable, _, _ = select.select([self._wakeup, *others], [], [], seconds)
        if self._wakeup in readable:
            with suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        return [each for each in others if each in readable]

    def _replace_all(self) -> None:
        """Start a worker in each slot, and let the inherited one retire once that serves."""
        old = sorted(self._inherited.workers, key=lambda pid: self._inherited.workers[pid])
        for index in range(max(self._count, len(old))):
            if self._is_stopping:
                return
            if index < self._count and not self._start_until_ready(index):
                logger.error("A new worker does not serve: the others stay as they are")
                return
            if index < len(old):
                self._retire(old[index])
        for descriptor in self._inherited.descriptors:
            os.close(descriptor)
        self._inherited = Inherited({}, ())
        logger.info("Every worker is replaced")

    def _retire(self, pid: int) -> None:
        """Ask a worker to retire, and wait for its end."""
        if pid not in self._children:
            return
        self._retired.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, RETIRE)
        while pid in self._children:
            self._reap(*self._wait_without_reload())

    def _wait_without_reload(self) -> tuple[int, int]:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                return pid, os.waitstatus_to_exitcode(status)
            self._sleep()

    def _start_until_ready(self, slot: int) -> bool:
        """Start a worker and wait until it serves; tell whether it does."""
        ready, self._ready = os.pipe()
        pid = self._start(self._work, slot, is_replacement=True)
        os.close(self._ready)
        self._ready = None
        give_up_at = time.monotonic() + _READY_SECONDS
        try:
            while (left := give_up_at - time.monotonic()) > 0:
                if self._sleep(ready, seconds=left):
                    if os.read(ready, 1):
                        return True
                    break  # it ended
        finally:
            os.close(ready)
        self._retired.add(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return False

    def _start(
        self, work: Work, slot: int = 0, short_lives: int = 0, *, is_replacement: bool = False
    ) -> int:
        """Fork a child; return its process id, or 0 where everything ends."""
        pause_seconds = _PAUSES_SECONDS[min(short_lives, len(_PAUSES_SECONDS) - 1)]
        # Else a signal could find a child that is not yet known, or one with the parent's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            if self._is_stopping:
                return 0
            pid = os.fork()
            if not pid:
                self.slot = slot
                self._become_child(work, pause_seconds)
            begins_at = time.monotonic() + pause_seconds
            self._children[pid] = _Child(slot, begins_at, short_lives, is_replacement)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _become_child(self, work: Work, pause_seconds: float) -> NoReturn:
        status = _FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if self._reload else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            for descriptor in (self._parent_holds, *self._inherited.descriptors):
                os.close(descriptor)
            threading.Thread(
                target=_end_with_parent, args=(self._parent_lives,), daemon=True
            ).start()
            time.sleep(pause_seconds)
            status = work()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else _FAILED
        except KeyboardInterrupt:
            status = 0
        except BaseException:
            logger.exception("a worker failed")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # nothing of the parent's is to be done twice

    def _reap(self, pid: int, status: int) -> None:
        child = self._children.pop(pid, None)
        if child is None:  # process 1 of a container is left the children of others
            return
        if self._is_stopping:
            if status not in _ENDED_WELL:
                self._status = self._status or _FAILED
            return
        if pid in self._retired:
            self._retired.discard(pid)
            return
        if status == self._refusal and not child.is_replacement:
            self._status = status
            self._stop()
            return
        logger.error("Worker %d ended with status %d and is replaced", pid, status)
        was_short = time.monotonic() - child.begins_at < _STEADY_SECONDS
        short_lives = child.short_lives + 1 if was_short else 0
        self._start(self._work, child.slot, short_lives, is_replacement=True)

    def _stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        if self._is_stopping:
            return
        self._is_stopping = True
        signal.setitimer(signal.ITIMER_REAL, self._stop_seconds)
        self._send(signal.SIGTERM)

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        for pid in self._children:
            logger.error("Worker %d did not end in time and is killed", pid)
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._children:
            with suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, number)


def _wake_up(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: a signal that is handled ends `Supervisor._sleep`."""


def _end_with_parent(parent_lives: int) -> None:
    """End in order when the parent is gone, however it went: the pipe has no other writer."""
    os.read(parent_lives, 1)
    os.kill(os.getpid(), signal.SIGTERM)
