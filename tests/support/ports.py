"""Free ports of loopback for servers, also where several test processes look for them at once."""

import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

FIRST, LAST = 20_000, 32_000
"""Below the range of outgoing connections, so that none takes a port while its server is down."""


def free_port() -> int:
    """Return a port that nobody has, and that no other call returns while this process lives."""
    while True:
        port = random.randrange(FIRST, LAST)  # noqa: S311  # no secret
        if port in _reserved or not _reserve(port):
            continue
        _reserved.add(port)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


_reserved: set[int] = set()
"""By this process, whose own locks do not stop it."""


def _reserve(port: int) -> bool:
    """Lock the port's byte of a file, which the system gives back when the process ends."""
    try:
        fcntl.lockf(_lock_file(os.getpid()), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _lock_file(_pid: int) -> int:
    """Open the file once per process: closing it anywhere would give all locks back."""
    path = Path(tempfile.gettempdir()) / f"agent-platform-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
