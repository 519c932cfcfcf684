"""What a server sent, in the words of the port: plain JSON of bounded size."""

import json
from base64 import b64decode
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import mcp_types as types

from app.core.storable_text import storable_text
from app.services.files.limits import TOOL_IMAGES

_LONGEST_DESCRIPTION = 64 * 1024


def storable_value(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Return JSON with U+FFFD instead of NUL and lone surrogates, which no database keeps."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {storable_text(name): storable_value(member) for name, member in members.items()}
    if isinstance(value, list):
        return [storable_value(each) for each in cast("list[Any]", value)]
    return value


def tool_fields(tool: types.Tool) -> dict[str, Any]:
    """Return the fields of `ListedTool`."""
    hints = (
        tool.annotations.model_dump(by_alias=True, exclude_none=True) if tool.annotations else {}
    )
    return {
        "name": tool.name,
        "description": (tool.description or tool.title or "")[:_LONGEST_DESCRIPTION],
        "parameters": tool.input_schema,
        "output_schema": tool.output_schema,
        "hints": {name: value for name, value in hints.items() if isinstance(value, bool)},
    }


def result_fields(result: types.CallToolResult) -> dict[str, Any]:
    """Return the fields of `McpResult`: structured content is preferred to text."""
    structured = result.structured_content
    if structured is not None:
        text = json.dumps(structured, ensure_ascii=False, separators=(",", ":"))
        return {"is_error": result.is_error, "text": text, "structured": structured}
    return {"is_error": result.is_error, "text": _text(result.content), "structured": None}


def images_of(result: types.CallToolResult) -> Sequence[bytes]:
    """Return the images of a result; what they are is not looked at."""
    encoded = filter(None, map(_image_base64, result.content))
    return [_decoded(image) for image in islice(encoded, TOOL_IMAGES)]


def _image_base64(block: types.ContentBlock) -> str | None:
    match block:
        case types.ImageContent(data=data):
            return data
        case types.EmbeddedResource(resource=types.BlobResourceContents(blob=data) as resource):
            is_image = (resource.mime_type or "").startswith("image/")
            return data if is_image else None
        case _:
            return None


def _decoded(image: str) -> bytes:
    try:
        return b64decode(image)
    except ValueError:
        return b""


def _text(blocks: Sequence[types.ContentBlock]) -> str:
    others = (block for block in blocks if not _image_base64(block))
    return "\n".join(filter(None, map(_block_text, others)))


def _block_text(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent(text=text):
            return text
        case types.ImageContent():
            return "[an image without data]"
        case types.AudioContent():
            return "[a sound that this model cannot hear]"
        case types.ResourceLink(uri=uri, name=name):
            return f"[resource {name}: {uri}]"
        case types.EmbeddedResource(resource=types.TextResourceContents(text=text)):
            return text
        case types.EmbeddedResource(resource=resource):
            return f"[binary resource: {resource.uri}]"
