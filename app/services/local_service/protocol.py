"""How the server and the worker process talk: frames of JSON, with bytes where there is sound.

A frame is two unsigned 32-bit big-endian lengths, then that much JSON (an object), then that
many bytes. The server writes requests (`op`), the worker answers with events (`event`); `id`
joins them. Only the standard library is imported here, for both sides load it first.
"""

import json
import struct
from enum import StrEnum
from typing import Any, BinaryIO, TypeAlias, cast

HEAD = struct.Struct("!II")
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

Fields: TypeAlias = dict[str, Any]


class Part(StrEnum):
    """What the engine can do; each part has its own model."""

    CHAT = "chat"
    STT = "stt"
    TTS = "tts"


class ProtocolBroken(Exception):
    """The other side sent what is not a frame."""


def encode_frame(fields: Fields, payload: bytes = b"") -> bytes:
    """Return one frame."""
    text = json.dumps(fields).encode()
    return b"".join((HEAD.pack(len(text), len(payload)), text, payload))


def decode_head(head: bytes) -> tuple[int, int]:
    """Return the lengths of the JSON and of the payload. Raises `ProtocolBroken`."""
    json_bytes, payload_bytes = HEAD.unpack(head)
    if json_bytes > MAX_JSON_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolBroken(f"a frame of {json_bytes} and {payload_bytes} bytes")
    return json_bytes, payload_bytes


def decode_fields(text: bytes) -> Fields:
    """Return the object in `text`. Raises `ProtocolBroken`."""
    try:
        fields: object = json.loads(text)
    except ValueError as error:
        raise ProtocolBroken("a frame that is not JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolBroken("a frame that is no object")
    return cast("Fields", fields)


def read_frame(stream: BinaryIO) -> tuple[Fields, bytes] | None:
    """Read one frame, blocking; `None` at the end of the stream, even inside a frame."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    json_bytes, payload_bytes = decode_head(head)
    text, payload = stream.read(json_bytes), stream.read(payload_bytes)
    if len(text) < json_bytes or len(payload) < payload_bytes:
        return None
    return decode_fields(text), payload
