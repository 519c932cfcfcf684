"""Show images and documents in a prompt: their contents take the places that the parts name."""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

from app.models import StoredFile
from app.services.files.library import FileContent, FileDraft, FileLibrary
from app.services.files.limits import text_tokens
from app.services.prompt_lines import PromptContent, PromptImage, PromptLine, PromptMessage
from app.services.turns.parts import (
    PARAGRAPH,
    AttachedLine,
    FilePart,
    ImagePart,
    ShownPart,
    TextPart,
)
from app.services.turns.records import Persona


class PromptFiles:
    """Loads what prompts show of files, and knows which agents see images."""

    def __init__(self, library: FileLibrary, *, has_vision: bool, may_have_vision: bool) -> None:
        """`has_vision` is of agents that say nothing; without `may_have_vision` none sees."""
        self.library = library
        self._has_vision = has_vision
        self._may_have_vision = may_have_vision

    def sees_images(self, vision: bool | None) -> bool:  # noqa: FBT001  # the agent's field
        """Tell whether an agent with this `vision` sees images."""
        return self._may_have_vision and (self._has_vision if vision is None else vision)

    async def load(
        self, workspace_id: UUID, persona: Persona, lines: Sequence[PromptLine]
    ) -> Sequence[PromptLine]:
        """Return the lines of a prompt with their files."""
        if AttachedLine not in map(type, lines):
            return lines
        sees_images = self.sees_images(persona.vision)
        ids = attached_ids(lines, sees_images=sees_images)
        contents = await self.library.contents(workspace_id, ids) if ids else {}
        return with_contents(lines, contents, sees_images=sees_images)


_UNSEEN = "[an image that this model cannot see]"
_GONE = "[a file that is not stored any more]"


def attached_ids(lines: Iterable[PromptLine], *, sees_images: bool) -> list[UUID]:
    """Return the ids of the files that lines of a prompt show."""
    return [
        UUID(part.file_id)
        for line in lines
        if isinstance(line, AttachedLine)
        for part in line.parts
        if isinstance(part, FilePart) or (isinstance(part, ImagePart) and sees_images)
    ]


def with_contents(
    lines: Sequence[PromptLine], contents: Mapping[UUID, FileContent], *, sees_images: bool
) -> list[PromptLine]:
    """Return the lines with their files; the same bytes each time, for the provider's cache."""
    return [
        _loaded(line, contents, sees_images=sees_images) if isinstance(line, AttachedLine) else line
        for line in lines
    ]


def _loaded(
    line: AttachedLine, contents: Mapping[UUID, FileContent], *, sees_images: bool
) -> PromptLine:
    pieces = [_piece(part, contents, sees_images=sees_images) for part in line.parts]
    text = PARAGRAPH.join(piece for piece in pieces if isinstance(piece, str))
    if all(isinstance(piece, str) for piece in pieces):
        return PromptMessage(line.role, text)
    return PromptContent(line.role, text, tuple(pieces))


def _piece(
    part: ShownPart, contents: Mapping[UUID, FileContent], *, sees_images: bool
) -> str | PromptImage:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, ImagePart) and not sees_images:
        return _UNSEEN
    content = contents.get(UUID(part.file_id))
    if isinstance(part, ImagePart):
        return PromptImage(part.media_type, content.data) if content and content.data else _GONE
    if content is None or content.text is None:
        return _GONE
    return document_text(part.name, content.text)


def document_text(name: str, text: str) -> str:
    """Return a document as a prompt shows it."""
    return f'File "{name}":\n\n{text}\n\n(End of the file)'


def draft_part(draft: FileDraft) -> ImagePart | FilePart:
    """Return the part of a message that shows a new file."""
    if draft.text is None:
        return image_part(draft)
    return FilePart(str(draft.id), draft.name, text_tokens(len(draft.text.encode())))


def image_part(image: FileDraft | StoredFile) -> ImagePart:
    """Return the part of a message that shows an image."""
    size = image.width or 0, image.height or 0
    return ImagePart(str(image.id), image.media_type, *size, image.size_bytes)
