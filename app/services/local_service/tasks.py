"""What the model runners of the worker share: how to be cancelled, and how to refuse."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

POLL_SECONDS = 0.1


class Refused(Exception):
    """The request can never succeed; the text is for the client and holds no input."""


class Cancelled(Exception):
    """Nobody wants the answer any more."""


class Task:
    """One request inside the worker; its methods may be called from any thread."""

    def __init__(self, *, credits: int = 0) -> None:  # noqa: A002 - flow control's own word
        self._cancelled = threading.Event()
        self._credits = threading.Semaphore(credits)

    def cancel(self) -> None:
        """Ask the runner to stop at its next step."""
        self._cancelled.set()

    def add_credit(self) -> None:
        """Allow one more piece of the answer to be made."""
        self._credits.release()

    @property
    def is_cancelled(self) -> bool:
        """True once nobody wants the answer."""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise `Cancelled` once nobody wants the answer."""
        if self.is_cancelled:
            raise Cancelled

    def spend_credit(self) -> None:
        """Wait until one more piece is allowed. Raises `Cancelled`."""
        while not self._credits.acquire(timeout=POLL_SECONDS):
            self.check()
        self.check()

    @contextmanager
    def holding(self, turnstile: threading.Semaphore) -> Generator[None]:
        """Hold a place at a model; gives up waiting with `Cancelled`."""
        while not turnstile.acquire(timeout=POLL_SECONDS):
            self.check()
        try:
            self.check()
            yield
        finally:
            turnstile.release()
