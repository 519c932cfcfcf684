"""Takes, reads and deletes files: rows in the database, large ones with bytes in the file store."""

import hashlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import PurePosixPath
from uuid import UUID

import anyio
from anyio import to_thread
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from app.core.database import Database, StorageUnavailable
from app.core.database.errors import is_missing_table
from app.core.security import Caller
from app.core.storable_text import storable_text
from app.core.value_objects import value_object
from app.models import Session, SessionFile, StoredFile, new_id, utc_now
from app.services.file_port import FileStore, FileStoreUnavailable
from app.services.files import rows
from app.services.files.errors import FileTooLarge, FileTooLong, FileUnreadable, file_not_found
from app.services.files.images import image_of
from app.services.files.limits import FILE_BYTES, IN_DATABASE_BYTES, TEXT_BYTES, text_tokens
from app.services.sandbox.fair_queue import JobCrashed
from app.services.sandbox.sandbox import Sandbox
from app.services.usage import StorageMeter

logger = logging.getLogger(__name__)

_READ_DOCUMENT = "app.services.files.job:read_document"
WARM_UP = "app.services.files.job:warm_up"
"""Named, not imported: the server has no reader of documents."""
_PENDING_KEPT = timedelta(hours=1)
_PRUNE_SECONDS = 60.0
_LONGEST_NAME, _LONGEST_DETAIL = 200, 200
_DOCUMENT_TYPES = frozenset(
    ("application/pdf", "text/html", "text/markdown", "text/plain",
     "application/vnd.openxmlformats-officedocument.wordprocessingml.document")
)  # fmt: skip


@value_object(frozen=True, slots=True)
class FileDraft:
    """A file that was checked and is not stored yet."""

    id: UUID
    workspace_id: UUID
    name: str
    media_type: str
    data: bytes
    sha256: str
    width: int | None = None
    height: int | None = None
    text: str | None = None
    user_id: str | None = None
    session_id: UUID | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes it has."""
        return len(self.data)

    @property
    def in_store(self) -> bool:
        """True where the bytes are too many for the database."""
        return len(self.data) > IN_DATABASE_BYTES

    def row(self, *, is_stored: bool, kept: timedelta | None) -> StoredFile:
        """Return the row; it expires after `kept`."""
        now = utc_now()
        return StoredFile(
            workspace_id=self.workspace_id,
            id=self.id,
            created_at=now,
            name=self.name,
            media_type=self.media_type,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            width=self.width,
            height=self.height,
            text=self.text,
            text_tokens=None if self.text is None else text_tokens(len(self.text.encode())),
            user_id=self.user_id,
            session_id=self.session_id,
            is_stored=is_stored,
            in_store=self.in_store,
            data=None if self.in_store else self.data,
            expires_at=now + kept if kept else None,
        )


@value_object(frozen=True, slots=True)
class FileContent:
    """What a prompt shows of a file: `data` of an image, or `text` of a document."""

    media_type: str
    data: bytes | None
    text: str | None


class FileLibrary:
    """One instance serves the whole process."""

    def __init__(
        self,
        database: Database,
        store: FileStore,
        sandbox: Sandbox,
        storage: StorageMeter,
        reader: str = _READ_DOCUMENT,
    ) -> None:
        """`sandbox` runs `reader` on documents; it was given `WARM_UP`."""
        self._reader = reader
        self._database = database
        self._store = store
        self._sandbox = sandbox
        self._storage = storage

    async def check(self, caller: Caller, name: str, data: bytes) -> FileDraft:
        """Find out what a file is, and read the text of a document; nothing is stored.

        Raises `FileTooLarge`, `FileTooLong`, `FileUnreadable`, and `TooManyJobs`, `WorkerBusy`,
        `WorkerUnavailable`.
        """
        draft = await self.check_image(caller, name, data)
        if draft:
            return draft
        name = _plain_name(name)
        extension = PurePosixPath(name).suffix.lstrip(".").lower()
        fields = {"extension": extension[:20], "limit_bytes": TEXT_BYTES}
        key = str(caller.workspace_id), caller.actor
        try:
            output = await self._sandbox.run(self._reader, fields, data, key)
        except JobCrashed as crash:
            logger.warning("a document could not be read: %s", crash.reason)
            raise FileUnreadable("The document is broken, or takes too much to read.") from None
        # The document may have taken its reader over: only what a text can be is let through.
        if refusal := output.fields.get("refusal"):
            refused = FileTooLong if output.fields.get("is_too_long") else FileUnreadable
            raise refused(storable_text(str(refusal))[:_LONGEST_DETAIL])
        media_type = str(output.fields.get("media_type"))
        text = storable_text(output.payload.decode(errors="replace"))
        if media_type not in _DOCUMENT_TYPES or not text or len(text.encode()) > TEXT_BYTES:
            raise FileUnreadable("The document cannot be read.")
        return replace(await _draft(caller, name, media_type, data), text=text)

    async def check_image(self, caller: Caller, name: str, data: bytes) -> FileDraft | None:
        """Return an image, or `None` for what is none. Raises `FileTooLarge`, `FileUnreadable`."""
        if not data:
            raise FileUnreadable("The file is empty.")
        if len(data) > FILE_BYTES:
            raise FileTooLarge(f"A file may have {FILE_BYTES // 1_000_000} MB at most.")
        image = image_of(data)
        if image is None:
            return None
        draft = await _draft(caller, _plain_name(name), image.media_type, data)
        return replace(draft, width=image.width, height=image.height)

    async def write(self, draft: FileDraft) -> None:
        """Write the bytes of a large file to the store; its row is there before. Then `add` it.

        Raises `FileStoreUnavailable` and `StorageFull`.
        """
        if not draft.in_store:
            return
        async with self._database.transaction() as db:
            await self._require_room(db, draft)
            db.add(draft.row(is_stored=False, kept=_PENDING_KEPT))
        await self._store.write(draft.workspace_id, draft.id, draft.data)

    async def add(self, db: AsyncSession, draft: FileDraft) -> StoredFile:
        """Store a file that `write` was called for; it is deleted after a day if nobody uses it.

        Raises `StorageFull`.
        """
        return await self._add(db, draft, rows.UNUSED_KEPT)

    async def store(self, draft: FileDraft) -> StoredFile:
        """Do `write` and `add`."""
        await self.write(draft)
        async with self._database.transaction() as db:
            return await self.add(db, draft)

    async def store_in_session(self, drafts: Sequence[FileDraft]) -> None:
        """Store files that their session uses from the beginning.

        Raises `FileNotFound` where the session is deleted.
        """
        for draft in drafts:
            await self.write(draft)
        async with self._database.transaction() as db:
            for draft in drafts:
                await _keep_session(db, draft)
                await self._add(db, draft, None)
                link = {"workspace_id": draft.workspace_id, "session_id": draft.session_id}
                db.add(SessionFile(**link, file_id=draft.id))

    async def _add(self, db: AsyncSession, draft: FileDraft, kept: timedelta | None) -> StoredFile:
        row = draft.row(is_stored=True, kept=kept)
        if draft.in_store:  # `write` has made the row
            row = await db.merge(row)
        else:
            await self._require_room(db, draft)
            db.add(row)
        await db.flush()
        return row

    async def _require_room(self, db: AsyncSession, draft: FileDraft) -> None:
        size_bytes = len(draft.data) + len((draft.text or "").encode())
        await self._storage.require_room(draft.workspace_id, size_bytes, db)

    async def read(self, file: StoredFile) -> bytes:
        """Return the bytes of a file that was loaded with them.

        Raises `FileStoreUnavailable`, also where the store of this server does not have them.
        """
        if not file.in_store:
            return file.data or b""
        data = await self._store.read(file.workspace_id, file.id)
        if data is None:
            raise FileStoreUnavailable("The file's bytes are not in the store of this server.")
        return data

    async def contents(
        self, workspace_id: UUID, file_ids: Sequence[UUID]
    ) -> dict[UUID, FileContent]:
        """Return what prompts show of files, by id; what cannot be read is left out."""
        query = (
            select(StoredFile)
            .where(
                StoredFile.workspace_id == workspace_id,
                StoredFile.id.in_(file_ids),
                StoredFile.is_stored,
            )
            .options(undefer(StoredFile.text))
        )
        images = query.where(StoredFile.text.is_(None)).options(undefer(StoredFile.data))
        documents = query.where(StoredFile.text.is_not(None))
        async with self._database.reading() as db:
            files = [*(await db.scalars(images)).all(), *(await db.scalars(documents)).all()]
        contents: dict[UUID, FileContent] = {}
        for file in files:
            data = None
            if file.text is None:
                try:
                    data = await self.read(file)
                except FileStoreUnavailable as error:
                    logger.error("a file cannot be read: %s", error.detail)  # noqa: TRY400
                    continue
            contents[UUID(str(file.id))] = FileContent(file.media_type, data, file.text)
        return contents

    async def delete(self, caller: Caller, file_id: UUID) -> None:
        """Delete a file that no message uses. Raises `FileNotFound` and `FileInUse`."""
        async with self._database.transaction() as db:
            await rows.expire_file(db, caller, file_id)

    @asynccontextmanager
    async def pruning(self) -> AsyncGenerator[None]:
        """Delete files whose time is over, once a minute, during the block."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._prune_forever)
            yield
            background.cancel_scope.cancel()

    async def _prune_forever(self) -> None:
        while True:
            try:
                await self.prune()
            except (StorageUnavailable, FileStoreUnavailable) as error:
                logger.warning("expired files are deleted later: %s", error.detail)
            except Exception as error:
                if not is_missing_table(error):  # missing tables are reported at the start
                    logger.exception("expired files could not be deleted")
            await anyio.sleep(_PRUNE_SECONDS)

    async def prune(self) -> None:
        """Delete files whose time is over: the bytes in the store first, and their rows last."""
        while True:
            async with self._database.transaction() as db:
                expired = await rows.take_expired(db)
            for file in expired:
                if not file.in_store:
                    continue
                await self._store.delete(file.workspace_id, file.id)
                async with self._database.transaction() as db:
                    await rows.delete_row(db, file)
            if not expired:
                return


async def _keep_session(db: AsyncSession, draft: FileDraft) -> None:
    """Let nobody delete the session of a file before this transaction ends."""
    query = select(Session.id).where(
        Session.workspace_id == draft.workspace_id, Session.id == draft.session_id
    )
    if await db.scalar(query.with_for_update(read=True, key_share=True)) is None:
        raise file_not_found()


async def _draft(caller: Caller, name: str, media_type: str, data: bytes) -> FileDraft:
    digest = await to_thread.run_sync(lambda: hashlib.sha256(data).hexdigest())
    return FileDraft(
        new_id(),
        caller.workspace_id,
        name,
        media_type,
        data,
        digest,
        user_id=caller.user_id or caller.session_user_id,
        session_id=caller.session_id,
    )


def _plain_name(name: str) -> str:
    """Return the last part of a path, of printable characters."""
    last = storable_text(name).replace("\\", "/").rpartition("/")[2]
    return "".join(filter(str.isprintable, last)).strip()[-_LONGEST_NAME:] or "file"
