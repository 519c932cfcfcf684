"""Report the progress of downloads: one updated line on a terminal, else one line per 10 %."""

import logging
import sys
from typing import Protocol, TextIO

logger = logging.getLogger(__name__)

MB = 1_000_000


class Report(Protocol):
    """Receives messages and progress of a download, in the thread that downloads."""

    def say(self, line: str) -> None:
        """Report a message of one line."""
        ...

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Report the downloaded and the total bytes; called often."""
        ...


class ConsoleReport:
    """Prints the report, to stderr by default."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._redraws = self._stream.isatty()
        self._last_step: int = 0
        self._drawn = False

    def say(self, line: str) -> None:
        """Print `line`, below the progress line if there is one."""
        lead = "\n" if self._drawn else ""
        self._drawn = False
        print(f"{lead}{line}", file=self._stream, flush=True)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Redraw the progress line, or print a new line for each 10 %."""
        percent = 100 * done_bytes // max(1, total_bytes)
        line = f"embedded models: {done_bytes // MB} of {total_bytes // MB} MB ({percent} %)"
        if self._redraws:
            if percent != self._last_step or not self._drawn:
                print(f"\r{line}", end="", file=self._stream, flush=True)
            self._last_step, self._drawn = percent, True
        elif percent // 10 > self._last_step:
            self._last_step = percent // 10
            print(line, file=self._stream, flush=True)


class LogReport:
    """Writes the messages to the log, and no progress."""

    def say(self, line: str) -> None:
        """Log `line`."""
        logger.info("%s", line)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Do nothing: what is downloaded is small."""
