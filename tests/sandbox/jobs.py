"""Jobs as a hostile file would have them; the worker process runs them."""

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

Fields = dict[str, Any]
Answer = tuple[Fields, bytes]


def warm_up() -> None:
    """Do nothing."""


def echo(fields: Fields, payload: bytes) -> Answer:
    return fields, payload


def describe(_fields: Fields, _payload: bytes) -> Answer:
    return {
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "niceness": os.nice(0),
    }, b""


def touch(fields: Fields, _payload: bytes) -> Answer:
    """Try what a reader that was taken over would try; return what worked."""
    attempts = {
        "read a file": lambda: Path("/etc/hostname").read_bytes(),
        "read the server's secrets": lambda: Path(f"/proc/{fields['server']}/environ").read_bytes(),
        "write a file": lambda: Path(fields["path"]).write_bytes(b"x"),
        "connect": lambda: socket.create_connection(("127.0.0.1", fields["port"]), 1),
        "open a pipe": os.pipe,
    }
    done: list[str] = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        done.append(name)
    return {"done": done}, b""


def spin(fields: Fields, _payload: bytes) -> Answer:
    """Use so many seconds of CPU; in the kernel's count, whatever the clock says."""
    until = time.process_time() + fields["seconds"]
    while time.process_time() < until:
        sum(range(1000))
    return {"niceness": os.nice(0)}, b""


def allocate(fields: Fields, _payload: bytes) -> Answer:
    return {"bytes": len(bytearray(fields["bytes"]))}, b""


def crash(_fields: Fields, _payload: bytes) -> Answer:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError("unreachable")


def fail(_fields: Fields, _payload: bytes) -> Answer:
    raise ValueError("no such sound")


def chatter(fields: Fields, _payload: bytes) -> Answer:
    """Write what is no answer, as somebody would who wants to confuse the server."""
    os.write(1, bytes.fromhex(fields["hex"]) * fields.get("times", 1))
    return {"was": "said"}, b""


def stop(_fields: Fields, _payload: bytes) -> Answer:
    """Be stopped by the kernel until somebody kills it."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}, b""


def wait(fields: Fields, _payload: bytes) -> Answer:
    time.sleep(fields["seconds"])
    return {}, b""
