"""Forked children and the parent that watches over them, in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import send_signal

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")

_PROGRAM = """
import os, signal, sys, time
from app.server.supervisor import Supervisor

def say(word):
    os.write(1, f"{word} {os.getpid()}\\n".encode())

def prepare():
    say("prepared")
    return PREPARED

def work():
    say("works")
    WORK
    return 0

supervisor = Supervisor(work, 2, refusal=3, stop_seconds=0.5)
sys.exit(supervisor.run(prepare))
"""
_FOR_EVER = "signal.pause()"
_DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    say('deaf')\n    time.sleep(60)"


class Parent:
    """The parent process, and what its children say."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def next(self) -> tuple[str, int]:
        """Return the next word, and the process id of the child that said it."""
        assert self.process.stdout is not None
        word, _, pid = self.process.stdout.readline().partition(" ")
        return word, int(pid or 0)

    def rest(self) -> str:
        """Return what is said until the last child is gone, and nobody has the pipe open."""
        assert self.process.stdout is not None
        return self.process.stdout.read()


@contextmanager
def parent(work: str = _FOR_EVER, prepared: int = 0) -> Generator[Parent]:
    program = _PROGRAM.replace("WORK", work).replace("PREPARED", str(prepared))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Parent(process)
        finally:
            process.kill()


def test_all_children_end_with_the_parent_and_its_status_is_zero() -> None:
    with parent() as supervised:
        words = [supervised.next()[0] for _ in range(3)]
        supervised.process.send_signal(signal.SIGTERM)
        rest = supervised.rest()
        status = supervised.process.wait(60)

    assert words == ["prepared", "works", "works"]
    assert not rest
    assert status == 0


def test_child_that_is_killed_is_replaced() -> None:
    with parent() as supervised:
        supervised.next()
        pids = {supervised.next()[1], supervised.next()[1]}
        send_signal(max(pids), signal.SIGKILL)
        word, pid = supervised.next()
        supervised.process.send_signal(signal.SIGINT)
        status = supervised.process.wait(60)

    assert word == "works"
    assert pid not in pids
    assert status == 0


def test_child_that_does_not_end_is_killed_and_the_status_tells() -> None:
    with parent(_DEAF) as supervised:
        assert [supervised.next()[0] for _ in range(5)].count("deaf") == 2
        supervised.process.send_signal(signal.SIGTERM)
        rest = supervised.rest()
        status = supervised.process.wait(60)

    assert not rest
    assert status == 1


def test_first_child_that_refuses_ends_all_with_its_status() -> None:
    with parent("sys.exit(3)") as supervised:
        supervised.rest()
        assert supervised.process.wait(60) == 3


def test_nothing_is_started_where_the_preparation_failed() -> None:
    with parent(prepared=3) as supervised:
        said = supervised.rest()
        assert supervised.process.wait(60) == 3

    assert "works" not in said


def test_children_end_when_their_parent_is_killed() -> None:
    with parent() as supervised:
        for _ in range(3):
            supervised.next()
        supervised.process.kill()

        assert not supervised.rest()  # which returns when the last of them is gone
