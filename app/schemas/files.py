"""Schemas of files, and of messages with images and documents."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from app.schemas.base import NonBlank, Request, Response

_MOST_FILES = 8
_MOST_PARTS = 32
_MOST_CHARACTERS = 200_000
_BASE64_CHARACTERS = 20_000_000 * 4 // 3 + 4


class TextInput(Request):
    """A text of a message."""

    type: Literal["text"]
    text: Annotated[NonBlank, StringConstraints(max_length=_MOST_CHARACTERS)]


class ImageInput(Request):
    """An image of a message: one that was uploaded, or its bytes."""

    type: Literal["image"]
    file_id: UUID | None = None
    data: Annotated[str, StringConstraints(max_length=_BASE64_CHARACTERS)] | None = Field(
        default=None,
        description="PNG, JPEG, WebP or GIF as base64, with or without `data:image/png;base64,` "
        "before it.",
    )

    @model_validator(mode="after")
    def _require_one(self) -> "ImageInput":
        if (self.file_id is None) == (self.data is None):
            raise ValueError("give exactly one of `file_id` and `data`")
        return self


class FileInput(Request):
    """A document of a message: the model is shown its text."""

    type: Literal["file"]
    file_id: UUID


InputPart = Annotated[TextInput | ImageInput | FileInput, Field(discriminator="type")]


def _within_limits(parts: list[Any]) -> list[Any]:
    texts = [part.text for part in parts if isinstance(part, TextInput)]
    if len(parts) - len(texts) > _MOST_FILES:
        raise ValueError(f"must have at most {_MOST_FILES} images and files")
    if sum(map(len, texts)) > _MOST_CHARACTERS:
        raise ValueError(f"must have at most {_MOST_CHARACTERS} characters of text together")
    return parts


InputParts = Annotated[
    list[InputPart], Field(min_length=1, max_length=_MOST_PARTS), AfterValidator(_within_limits)
]


def _shape_of_content(value: object) -> str:
    return "(parts)" if isinstance(value, list) else "(text)"


MessageContent = Annotated[
    Annotated[NonBlank, StringConstraints(max_length=_MOST_CHARACTERS), Tag("(text)")]
    | Annotated[InputParts, Tag("(parts)")],
    Discriminator(_shape_of_content),
]
"""Text, or a list of parts. The tags are in `UNION_TAGS`."""


class FileRead(Response):
    """An image or a document."""

    id: UUID
    name: str
    media_type: str = Field(description="What the bytes are, whatever the upload said.")
    size_bytes: int
    sha256: str
    width: int | None = Field(description="Of an image, in pixels.")
    height: int | None
    text_tokens: int | None = Field(
        description="About how many tokens the text of a document adds to a prompt."
    )
    created_at: datetime
    expires_at: datetime | None = Field(
        description="When it is deleted unless a message uses it; `null` while a session does."
    )


class ExportedFile(FileRead):
    """A file of an export; `data` is base64, `null` where the bytes are not stored any more."""

    data: str | None
