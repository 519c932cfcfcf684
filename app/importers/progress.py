"""A progress bar on the terminal; nothing where standard error is none."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from app.importers.json_files import files_of
from app.importers.records import ImportReport

_WIDTH = 30
_EACH_SECONDS = 0.2


class ProgressBar:
    """Shows how much of the files was read, several times a second."""

    def __init__(self, path: Path) -> None:
        self._size_bytes = sum(file.stat().st_size for file in files_of(path))
        self._is_shown = sys.stderr.isatty()
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        """Remove the bar."""
        if self._is_shown:
            sys.stderr.write("\r\033[K")

    def show(self, report: ImportReport) -> None:
        """Draw the bar; the bytes read are those of this process, as the system counts them."""
        now = time.monotonic()
        if not self._is_shown or now < self._shown_at + _EACH_SECONDS:
            return
        self._shown_at = now
        share = min(1.0, report.read_bytes / max(1, self._size_bytes))
        bar = "#" * round(share * _WIDTH)
        sessions = report.kept["sessions"] + report.present["sessions"]
        with suppress(OSError):
            sys.stderr.write(f"\r[{bar:<{_WIDTH}}] {share:4.0%}  {sessions} sessions")
            sys.stderr.flush()
