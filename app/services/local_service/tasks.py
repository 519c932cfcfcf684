"""Cancellation, flow control and refusal of requests inside the worker."""

import heapq
import itertools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import IntEnum

POLL_SECONDS = 0.1


class Refused(Exception):
    """The request can never succeed; the text is sent to the client and contains no user input."""


class Cancelled(Exception):
    """The request was cancelled."""


class Task:
    """One request inside the worker; its methods may be called from any thread."""

    def __init__(self, *, credits: int = 0) -> None:  # noqa: A002 - the term of flow control
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self._credits = threading.Semaphore(credits)

    def cancel(self) -> None:
        """Cancel the request; the model runner stops at once, or at its next check."""
        with self._lock:
            self._cancelled.set()
            if self._stop:
                self._stop()

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Generator[None]:
        """Call `stop` if the request is cancelled during the block, from another thread.

        An exception of the block then becomes `Cancelled`.
        """
        with self._lock:
            self.check()
            self._stop = stop
        try:
            yield
        except Exception:
            self.check()
            raise
        finally:
            with self._lock:
                self._stop = None

    def add_credit(self) -> None:
        """Allow one more piece of the answer."""
        self._credits.release()

    @property
    def is_cancelled(self) -> bool:
        """True once the request is cancelled."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if the request is cancelled."""
        if self.is_cancelled:
            raise Cancelled

    def spend_credit(self) -> None:
        """Wait for one credit and consume it. Raises `Cancelled`."""
        while not self._credits.acquire(timeout=POLL_SECONDS):
            self.check()
        self.check()

    @contextmanager
    def holding(self, slots: threading.Semaphore) -> Generator[None]:
        """Hold one of a model's slots during the block. Raises `Cancelled` while it waits."""
        while not slots.acquire(timeout=POLL_SECONDS):
            self.check()
        try:
            self.check()
            yield
        finally:
            slots.release()


class Urgency(IntEnum):
    """What somebody waits for comes first."""

    ENDED_SPEECH = 0
    """The transcription of what somebody has finished saying."""
    FIRST_SENTENCE = 1
    """The first sound of an answer."""
    EARLY_TRANSCRIPTION = 2
    """That of somebody who may go on."""
    NEXT_SENTENCE = 3


class ModelQueue:
    """Lets one task at a time use the cores: the most urgent one, and of those the oldest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[Urgency, int]] = []
        self._numbers = itertools.count()
        self._is_held = False

    @contextmanager
    def holding(self, task: Task, urgency: Urgency) -> Generator[None]:
        """Have the turn of `task` during the block. Raises `Cancelled` while it waits."""
        place = (urgency, next(self._numbers))
        with self._changed:
            heapq.heappush(self._waiting, place)
            try:
                while self._is_held or self._waiting[0] != place:
                    task.check()
                    self._changed.wait(POLL_SECONDS)
                self._is_held = True
            finally:
                self._waiting.remove(place)
                heapq.heapify(self._waiting)
                self._changed.notify_all()
        try:
            task.check()
            yield
        finally:
            with self._changed:
                self._is_held = False
                self._changed.notify_all()
