"""Starts draining on a shutdown signal, before the web server handles the signal."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def draining_on_signals(drain: Callable[[], None]) -> Generator[None]:
    """Call `drain` on SIGTERM or SIGINT while the block runs, then the previous handler.

    The server that runs the application (`serve`, or uvicorn's own command) has installed its
    handlers before. Outside of the main thread, as in tests, signals cannot be handled, and
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        drain()
        previous = before[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)

    for number in _SIGNALS:
        previous = signal.getsignal(number)
        # Only a server's handler is wrapped; Python's default handlers keep their behaviour.
        if callable(previous) and previous is not signal.default_int_handler:
            before[number] = previous
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            with suppress(ValueError):
                signal.signal(number, previous)
