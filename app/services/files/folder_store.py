"""Fulfils `FileStore` with a folder: a file for each, in a folder for each workspace."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from anyio import to_thread

from app.core.private_files import make_private_folder
from app.services.file_port import FileStoreUnavailable

T = TypeVar("T")

_UNFINISHED = ".part"


class FolderFileStore:
    """Several servers must share the folder, as over a network file system: each reads its own."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made at the first `write`."""
        self._folder = folder

    async def write(self, workspace_id: UUID, file_id: UUID, data: bytes) -> None:
        """Fulfil `FileStore.write`: written aside, flushed to the disk, and renamed."""
        await _in_thread(lambda: self._write(self._path(workspace_id, file_id), data))

    async def read(self, workspace_id: UUID, file_id: UUID) -> bytes | None:
        """Fulfil `FileStore.read`."""
        path = self._path(workspace_id, file_id)

        def read() -> bytes | None:
            with suppress(FileNotFoundError):
                return path.read_bytes()
            return None

        return await _in_thread(read)

    async def delete(self, workspace_id: UUID, file_id: UUID) -> None:
        """Fulfil `FileStore.delete`."""
        path = self._path(workspace_id, file_id)

        def delete() -> None:
            for each in (path, path.with_suffix(_UNFINISHED)):
                each.unlink(missing_ok=True)

        await _in_thread(delete)

    def _path(self, workspace_id: UUID, file_id: UUID) -> Path:
        # `UUID`, for the driver of Postgres has a class of its own.
        return self._folder / UUID(str(workspace_id)).hex / UUID(str(file_id)).hex

    def _write(self, path: Path, data: bytes) -> None:
        for folder in (self._folder, path.parent):
            make_private_folder(folder)
        unfinished = path.with_suffix(_UNFINISHED)
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a `Path` takes no rights
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            _flush_folder(path.parent)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power failure, where the system has folders to be flushed."""
    with suppress(PermissionError):  # Windows
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


async def _in_thread(work: Callable[[], T]) -> T:
    try:
        return await to_thread.run_sync(work)
    except OSError as error:
        raise FileStoreUnavailable(
            "The store of files cannot be used now.", retry_after_seconds=30
        ) from error
