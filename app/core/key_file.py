"""Files that keep a generated key: who may have written one decides who is admin, for example."""

import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from app.core.errors import StartRefused
from app.core.private_files import make_private

_WITHOUT_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Neither follow a symbolic link nor wait for the writer of a pipe."""
_SHORTEST_KEY = 16


def load_or_create_admin_key(path: Path) -> SecretStr:
    """Return the admin key in `path`; raises as `load_or_create_key_file` does."""

    def make() -> str:
        return f"ap_admin_{secrets.token_urlsafe(32)}"

    return SecretStr(load_or_create_key_file(path, make, what="admin", setting="ADMIN_API_KEY"))


def load_or_create_key_file(path: Path, make: Callable[[], str], *, what: str, setting: str) -> str:
    """Return the key in `path`, which `make` makes at first; only its owner may read the file.

    Errors call it the `what` key, and name the `setting` that can be set instead. Raises
    `StartRefused` where somebody else may have chosen the key, or anybody could guess it,
    and `OSError` when the file cannot be read or made.
    """

    def refusal(why: str) -> StartRefused:
        return StartRefused(
            f"The {what} key file {path} {why}: remove it to have a new key made at the next "
            f"start, or set {setting}."
        )

    if not os.path.lexists(path):
        _create_key(path, make())
    try:
        # What is checked is what is read: the path may change in between.
        descriptor = os.open(path, os.O_RDONLY | _WITHOUT_LINKS)
    except OSError as error:
        if path.is_symlink():
            raise refusal("is a symbolic link") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise refusal("is not a file")
    with os.fdopen(descriptor, "rb") as file:
        if os.name == "posix" and status.st_mode & 0o022:
            raise refusal("can be written by other accounts")
        if os.name == "posix" and status.st_uid not in {os.geteuid(), 0}:
            raise refusal("belongs to another account")
        make_private(path)
        text = file.read().strip()
    if len(text) < _SHORTEST_KEY or not text.isascii():
        raise refusal(f"has no key of at least {_SHORTEST_KEY} ASCII characters")
    return text.decode()


def _create_key(path: Path, key: str) -> None:
    """Write a new key; of two processes that do so at once, the first one's stays."""
    made = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{key}\n")
    try:
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
