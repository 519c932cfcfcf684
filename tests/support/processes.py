"""Signals to processes that tests started, and to none that they did not."""

import os
import signal


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to one process. Raises `ProcessLookupError` where it is gone.

    To `kill`, 0 and negative numbers are whole groups, such as that of the tests themselves.
    """
    assert pid > 1, f"{pid} is no process that a test may signal"
    os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Return whether there is such a process."""
    assert pid > 1, f"{pid} is no process of a test"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
