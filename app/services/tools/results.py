"""What a model sees of a tool's answer: text of bounded size that every database can store."""

import json
import re
from typing import Any, cast

import orjson

from app.core.storable_text import storable_text
from app.services.files.html_text import html_to_text
from app.services.files.images import image_of
from app.services.tool_ports import ToolFile

STORED_BYTES = 256 * 1024
FAILURE_BYTES = 2048
"""Of the body of a failed answer."""
_HEAD_SHARE = 0.6
_WHITESPACE_IN_JSON = re.compile(r'("(?:[^"\\]|\\.)*")|\s+')
_INDEX = re.compile(r"[0-9]{1,9}")
_NOTHING_THERE = "The result has nothing at the place that was to be shown."
_TEXT_TYPES = frozenset(
    ("application/xml", "application/yaml", "application/x-yaml", "application/javascript",
     "application/csv", "application/x-ndjson", "application/x-www-form-urlencoded",
     "application/graphql", "application/sql", "application/toml")
)  # fmt: skip
_CHARSETS = frozenset(
    ("utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252", "utf-16", "utf-16le",
     "utf-16be", "shift_jis", "euc-jp", "gb18030", "gbk", "big5", "euc-kr", "koi8-r",
     "windows-1251", "iso-8859-2", "windows-1250")
)  # fmt: skip
_CHARSET = re.compile(r"charset\s*=\s*\"?([A-Za-z0-9_-]{1,40})", re.IGNORECASE)


class UnreadableResult(Exception):
    """The answer is not text; the message says what it is, without its content."""


def text_of(body: bytes, content_type: str) -> str:
    """Return the text of an answer: JSON compacted, HTML without its tags, the rest as it is.

    Raises `UnreadableResult`.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if not body:
        return ""
    if media_type == "application/json" or media_type.endswith("+json"):
        return compact_json(_decoded(body, "utf-8"))
    is_text = media_type.startswith("text/") or media_type.endswith("+xml")
    if not (is_text or media_type in _TEXT_TYPES):
        return _guessed(body, media_type)
    charset = _CHARSET.search(content_type)
    text = _decoded(body, charset[1].lower() if charset else "utf-8")
    is_html = media_type in {"text/html", "application/xhtml+xml"}
    return storable_text(html_to_text(text) if is_html else text)


def _guessed(body: bytes, media_type: str) -> str:
    if media_type in {"", "application/octet-stream"} and b"\0" not in body:
        try:
            return compact_json(body.decode())
        except UnicodeDecodeError:
            pass
    kind = media_type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", media_type) else "binary data"
    raise UnreadableResult(f"The result is {kind[:100]}, and only text can be shown.")


def _decoded(body: bytes, charset: str) -> str:
    return body.decode(charset if charset in _CHARSETS else "utf-8", "replace").lstrip("\ufeff")


def compact_json(text: str) -> str:
    """Return JSON without whitespace, with its numbers as they were; other text as it is."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return storable_text(text)
    return storable_text(_WHITESPACE_IN_JSON.sub(r"\1", text))


def select(text: str, pointer: str) -> str:
    """Return the part of JSON that `pointer` leads to. Raises `UnreadableResult`."""
    try:
        orjson.loads(text)  # which limits the depth
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise UnreadableResult("The result is no JSON, of which a part was to be shown.") from None
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = cast("dict[str, Any]", value)[name]
        elif isinstance(value, list) and _INDEX.fullmatch(name):
            items = cast("list[Any]", value)
            if int(name) >= len(items):
                raise UnreadableResult(_NOTHING_THERE)
            value = items[int(name)]
        else:
            raise UnreadableResult(_NOTHING_THERE)
    if isinstance(value, str):
        return storable_text(value)
    return storable_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def image_result(data: bytes) -> tuple[str, ToolFile] | None:
    """Return an image and what stands for it in a result's text; `None` for one of unknown kind.

    Raises `FileUnreadable` and `FileTooLarge`.
    """
    image = image_of(data)
    if image is None:
        return None
    text = f"[an image: {image.media_type}, {image.width} x {image.height} pixels]"
    return text, ToolFile(image.media_type, data, image.width, image.height)


def cut(text: str, max_bytes: int) -> str:
    """Return at most `max_bytes` of UTF-8: 60 % of the head, a note, and 40 % of the tail."""
    data = text.encode()
    if len(data) <= max_bytes:
        return text
    note_bytes = len(_note(len(text)).encode())
    kept = max(0, max_bytes - note_bytes)
    head = data[: int(kept * _HEAD_SHARE)].decode(errors="ignore")
    tail_bytes = kept - int(kept * _HEAD_SHARE)
    tail = data[len(data) - tail_bytes :].decode(errors="ignore") if tail_bytes else ""
    return f"{head}{_note(len(text) - len(head) - len(tail))}{tail}"


def _note(count: int) -> str:
    return f"\n[... {count:,} characters left out ...]\n"
