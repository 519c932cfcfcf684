"""A message of several parts before its turn: its files are found, and inline images stored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from uuid import UUID

from sqlalchemy import and_, select

from app.core.database import Database
from app.core.security import Caller
from app.core.value_objects import value_object
from app.models import Agent, Session, StoredFile
from app.services.crud import visible_sessions
from app.services.files.errors import (
    FileTooLarge,
    FileUnreadable,
    ImagesNotSupported,
    file_not_found,
)
from app.services.files.library import FileDraft
from app.services.files.limits import MESSAGE_FILES, PROMPT_IMAGE_BYTES
from app.services.files.rows import find_files
from app.services.turns.context.attachments import PromptFiles, image_part
from app.services.turns.execution.upload_admission import UploadAdmission
from app.services.turns.parts import PARAGRAPH, FilePart, ImagePart, InputPart, TextPart
from app.services.turns.records import TurnOptions


@value_object(frozen=True, slots=True)
class InlineImage:
    """An image that came with the message."""

    data: bytes


@value_object(frozen=True, slots=True)
class FileReference:
    """A file that was uploaded before."""

    file_id: UUID
    is_image: bool
    """True where the part says that it is an image."""


@value_object(frozen=True, slots=True)
class InlineFile:
    """An image or a document that came with a request of another dialect."""

    name: str
    data: bytes
    is_image: bool
    """True where the request says that it is an image."""


GivenPart = TextPart | InlineImage | FileReference


class MessageInput:
    """Makes the parts of user messages; one instance serves the whole process."""

    def __init__(self, database: Database, files: PromptFiles, admission: UploadAdmission) -> None:
        self._database = database
        self._files = files
        self._admission = admission

    async def prepare(
        self,
        caller: Caller,
        session_id: UUID,
        given: Sequence[GivenPart],
        options: TurnOptions,
    ) -> tuple[str, TurnOptions]:
        """Return the text of a message, and the options with its parts.

        Raises what starting the turn would, and `ImagesNotSupported`, `FileNotFound`,
        `FileUnreadable`, `FileTooLarge`; then nothing is stored. Then inline images are stored,
        for a day if no turn uses them: raises `StorageFull` and `FileStoreUnavailable`.
        """
        content = PARAGRAPH.join(part.text for part in given if isinstance(part, TextPart))
        if all(isinstance(part, TextPart) for part in given):
            return content, options
        await self._admission.admit(caller, session_id, options.key)
        if any(_is_image(part) for part in given):
            await self._require_vision(caller, session_id)
        found = await self._find(caller, given)
        drafts = [
            await self._read_image(caller, part.data)
            for part in given
            if isinstance(part, InlineImage)
        ]
        new = iter(drafts)
        parts = [_part(part, found, new_of=lambda: next(new)) for part in given]
        _require_small(part.size_bytes for part in parts if isinstance(part, ImagePart))
        for draft in drafts:
            await self._files.library.store(draft)
        return content, replace(options, parts=parts)

    async def check_inline(
        self, caller: Caller, given: Sequence[InlineFile], *, vision: bool | None
    ) -> list[FileDraft]:
        """Return the files of a request to an agent with this `vision`; nothing is stored.

        Raises what starting the turn would, and `ImagesNotSupported`, `FileUnreadable`,
        `FileTooLarge`, `FileTooLong`.
        """
        await self._admission.admit_anywhere(caller)
        if len(given) > MESSAGE_FILES:
            raise FileTooLarge(f"A request may bring {MESSAGE_FILES} files.")
        drafts: list[FileDraft] = []
        for file in given:
            if file.is_image:
                draft = await self._read_image(caller, file.data)
            else:
                draft = await self._files.library.check(caller, file.name, file.data)
            if draft.text is None and not self._files.sees_images(vision):
                raise _no_vision()
            drafts.append(draft)
        _require_small(draft.size_bytes for draft in drafts if draft.text is None)
        return drafts

    async def store_inline(self, drafts: Sequence[FileDraft]) -> None:
        """Store files, for a day if no turn uses them.

        Raises `StorageFull` and `FileStoreUnavailable`.
        """
        for draft in drafts:
            await self._files.library.store(draft)

    async def _require_vision(self, caller: Caller, session_id: UUID) -> None:
        of_session = and_(Agent.workspace_id == Session.workspace_id, Agent.id == Session.agent_id)
        query = (
            select(Agent.vision)
            .join(Session, of_session)
            .where(visible_sessions(caller), Session.id == session_id)
        )
        async with self._database.reading() as db:
            vision = await db.scalar(query)
        if not self._files.sees_images(vision):
            raise _no_vision()

    async def _find(self, caller: Caller, given: Sequence[GivenPart]) -> Mapping[UUID, StoredFile]:
        ids = {part.file_id for part in given if isinstance(part, FileReference)}
        if not ids:
            return {}
        async with self._database.reading() as db:
            found = await find_files(db, caller, list(ids))
        if found.keys() != ids:
            raise file_not_found()
        return found

    async def _read_image(self, caller: Caller, data: bytes) -> FileDraft:
        draft = await self._files.library.check_image(caller, "image", data)
        if draft is None:
            raise FileUnreadable("Send images as PNG, JPEG, WebP or GIF.")
        return draft


def _no_vision() -> ImagesNotSupported:
    return ImagesNotSupported(
        "The agent's model does not see images: choose another model and set the agent's "
        "`vision`, or the setting CHAT_MODEL_VISION."
    )


def _require_small(sizes: Iterable[int]) -> None:
    if sum(sizes) > PROMPT_IMAGE_BYTES:
        raise FileTooLarge(
            f"The images of a message may have {PROMPT_IMAGE_BYTES // 1_000_000} MB together."
        )


def _is_image(part: GivenPart) -> bool:
    return isinstance(part, InlineImage) or (isinstance(part, FileReference) and part.is_image)


def _part(
    part: GivenPart, found: Mapping[UUID, StoredFile], new_of: Callable[[], FileDraft]
) -> InputPart:
    """Return a part as it is stored. Raises `FileUnreadable`."""
    if isinstance(part, TextPart):
        return part
    if isinstance(part, InlineImage):
        return image_part(new_of())
    file = found[part.file_id]
    if part.is_image and file.text_tokens is None:
        return image_part(file)
    if not part.is_image and file.text_tokens is not None:
        return FilePart(str(file.id), file.name, file.text_tokens)
    kind = "a document: use a part of type `file`" if part.is_image else "an image: use `image`"
    raise FileUnreadable(f"The file is {kind}.")
