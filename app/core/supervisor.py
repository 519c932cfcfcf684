"""Several processes that do the same work, forked from a parent that watches over them.

The parent does none of the work, and opens nothing but what its children share. It has imported
everything, so that a child begins in milliseconds and shares the memory of it. POSIX only.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
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
_HANDLED = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGALRM))
_ENDED_WELL = frozenset((0, -signal.SIGTERM, -signal.SIGINT))
_FAILED = 1


@dataclass(frozen=True, slots=True)
class _Child:
    begins_at: float
    """By `time.monotonic`."""
    short_lives: int
    """How many before it ended soon after their start."""
    is_replacement: bool


class Supervisor:
    """Keeps `count` children at `work`, until SIGTERM or SIGINT ends them all.

    A child that ends by itself is replaced, whatever its status. Only where one of the first
    ends with `refusal`, which the others would, too, all are ended.
    """

    def __init__(self, work: Work, count: int, *, refusal: int, stop_seconds: float) -> None:
        """`stop_seconds` after SIGTERM what is left of the children is killed."""
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
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        self._start(prepare)
        while self._children:
            pid, status = _wait()
            if self._children.pop(pid, None) and status:
                return 0 if self._is_stopping else max(status, _FAILED)
        for _ in range(self._count):
            self._start(self._work)
        while self._children:
            self._reap(*_wait())
        return self._status

    def _start(self, work: Work, short_lives: int = 0, *, is_replacement: bool = False) -> None:
        pause_seconds = _PAUSES_SECONDS[min(short_lives, len(_PAUSES_SECONDS) - 1)]
        # Else a signal could find a child that is not yet known, or one with the parent's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            if self._is_stopping:
                return
            pid = os.fork()
            if not pid:
                self._become_child(work, pause_seconds)
            begins_at = time.monotonic() + pause_seconds
            self._children[pid] = _Child(begins_at, short_lives, is_replacement)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)

    def _become_child(self, work: Work, pause_seconds: float) -> NoReturn:
        status = _FAILED
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            os.close(self._parent_holds)
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
        if status == self._refusal and not child.is_replacement:
            self._status = status
            self._stop()
            return
        logger.error("Worker %d ended with status %d and is replaced", pid, status)
        was_short = time.monotonic() - child.begins_at < _STEADY_SECONDS
        self._start(self._work, child.short_lives + 1 if was_short else 0, is_replacement=True)

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


def _wait() -> tuple[int, int]:
    """Wait for a child to end; return its process id and status, negative for a signal."""
    pid, status = os.waitpid(-1, 0)
    return pid, os.waitstatus_to_exitcode(status)


def _end_with_parent(parent_lives: int) -> None:
    """End in order when the parent is gone, however it went: the pipe has no other writer."""
    os.read(parent_lives, 1)
    os.kill(os.getpid(), signal.SIGTERM)
