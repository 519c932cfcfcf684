"""Port of the bytes of large files; `services/files/folder_store.py` fulfils it."""

from typing import Protocol
from uuid import UUID

from app.core.errors import AppError, ErrorKind


class FileStoreUnavailable(AppError):
    """The store of files cannot be used now."""

    kind = ErrorKind.UNAVAILABLE
    code = "file-store-unavailable"


class FileStore(Protocol):
    """Keeps the bytes of files under the id of their row.

    The row is there before the bytes, and is deleted after them.
    """

    async def write(self, workspace_id: UUID, file_id: UUID, data: bytes) -> None:
        """Store `data`, whole or not at all. Raises `FileStoreUnavailable`."""
        ...

    async def read(self, workspace_id: UUID, file_id: UUID) -> bytes | None:
        """Return the bytes; `None` where they are not here. Raises `FileStoreUnavailable`."""
        ...

    async def delete(self, workspace_id: UUID, file_id: UUID) -> None:
        """Delete the bytes, and what a broken `write` left; nothing happens where there are none.

        Raises `FileStoreUnavailable`.
        """
        ...
