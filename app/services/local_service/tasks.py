"""Cancellation, flow control and refusal of requests inside the worker."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

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
