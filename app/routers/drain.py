"""Learning of a shutdown before the web server does: then nothing new is accepted."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def draining_on_signals(drain: Callable[[], None]) -> Generator[None]:
    """Call `drain` on SIGTERM or SIGINT inside the block, then whoever handled it before.

    Whatever runs the application (`serve`, or uvicorn's own command) has its handlers by then.
    Outside of the main thread, as in tests, there are no signals and nothing is changed.
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
        # Only a server's handler is wrapped: by itself, Python's own must go on as it does.
        if callable(previous) and previous is not signal.default_int_handler:
            before[number] = previous
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            with suppress(ValueError):
                signal.signal(number, previous)
