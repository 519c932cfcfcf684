"""Files and folders that only the account of the server may read."""

import os
from contextlib import suppress
from pathlib import Path

_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal", ".lock")
_OTHERS = 0o077


def make_private_folder(folder: Path) -> None:
    """Create `folder` (0700) and its parents where they are missing.

    A folder that exists stays as it is: it may be shared with other programs.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def protect_sqlite_files(database: Path) -> None:
    """Create the database file and its lock file (0600) where they are missing, and their folder.

    Those that exist, and SQLite's own beside them, lose the rights of group and others. SQLite
    gives the files that it creates later the mode of the database file.
    """
    make_private_folder(database.parent)
    for suffix in _SQLITE_SUFFIXES:
        path = database.with_name(database.name + suffix)
        if suffix in {"", ".lock"}:
            # A file that exists is not opened: to close it would free the locks of this process.
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        make_private(path)


def make_private(path: Path) -> None:
    """Take the rights of group and others from a file that is there and is ours."""
    with suppress(FileNotFoundError, PermissionError):  # such as a file of another account
        mode = path.stat().st_mode
        if mode & _OTHERS:
            path.chmod(mode & ~_OTHERS & 0o7777)
