"""The output of a client's tool: any JSON, or images and texts as parts."""

from collections.abc import Sequence
from typing import Any, cast
from uuid import UUID

import orjson

from app.models import StoredFile
from app.services.files.errors import FileTooLarge, FileUnreadable
from app.services.files.limits import TOOL_IMAGE_BYTES, TOOL_IMAGES
from app.services.turns.context.attachments import image_part
from app.services.turns.parts import PARAGRAPH, ImagePart

_IMAGE_KEYS = {"type", "file_id"}
_TEXT_KEYS = {"type", "text"}


def image_references(output: object) -> list[UUID]:
    """Return the ids of the images in an output; none where it is not made of parts alone.

    Raises `FileUnreadable` where there are more than 4.
    """
    ids = [UUID(part["file_id"]) for part in _parts(output) or () if part["type"] == "image"]
    if len(ids) > TOOL_IMAGES:
        raise FileUnreadable(f"An output may have {TOOL_IMAGES} images at most.")
    return ids


def text_of_output(output: object) -> str:
    """Return an output as a model is shown it, without its images."""
    parts = _parts(output)
    if parts and any(part["type"] == "image" for part in parts):
        texts = [part["text"] for part in parts if part["type"] == "text"]
        return PARAGRAPH.join(texts) or "[The output is an image.]"
    return output if isinstance(output, str) else orjson.dumps(output).decode()


def images_of_output(files: Sequence[StoredFile]) -> list[ImagePart]:
    """Return the parts that show images. Raises `FileUnreadable` and `FileTooLarge`."""
    if any(file.width is None for file in files):
        raise FileUnreadable("The file is a document: an output may have images.")
    if any(file.size_bytes > TOOL_IMAGE_BYTES for file in files):
        megabytes = TOOL_IMAGE_BYTES // 1_000_000
        raise FileTooLarge(f"An image of an output may have {megabytes} MB at most.")
    return [image_part(file) for file in files]


def _parts(output: object) -> list[dict[str, Any]] | None:
    """Return an output that is a part or a list of parts; `None` for other JSON."""
    items = cast("list[object]", output) if isinstance(output, list) else [output]
    parts = [cast("dict[str, Any]", item) for item in items if _is_part(item)]
    return parts if items and len(parts) == len(items) else None


def _is_part(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    part = cast("dict[str, Any]", item)
    if part.get("type") == "text":
        return part.keys() == _TEXT_KEYS and isinstance(part["text"], str)
    if part.get("type") != "image" or part.keys() != _IMAGE_KEYS:
        return False
    try:
        UUID(part["file_id"])
    except (ValueError, AttributeError, TypeError):
        return False
    return True
