"""The protocol between server and worker processes: frames of JSON with a binary payload.

A frame is two unsigned 32-bit big-endian lengths, then the JSON object, then the payload (audio).
The server writes requests (`op`), a worker writes events (`event`); both have the request's `id`.
Only the standard library is imported here, because both sides load this module first.
"""

import json
import struct
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

if TYPE_CHECKING:
    from asyncio import StreamReader

HEAD = struct.Struct("!II")
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

Fields: TypeAlias = dict[str, Any]


class ProtocolBroken(Exception):
    """The other side sent an invalid frame."""


def encode_frame(fields: Fields, payload: bytes | bytearray = b"") -> bytes:
    """Encode one frame."""
    text = json.dumps(fields).encode()
    return b"".join((HEAD.pack(len(text), len(payload)), text, payload))


def decode_head(head: bytes) -> tuple[int, int]:
    """Return the lengths of JSON and payload, in bytes. Raises `ProtocolBroken`."""
    json_bytes, payload_bytes = HEAD.unpack(head)
    if json_bytes > MAX_JSON_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolBroken(
            f"the frame is too large: {json_bytes} bytes JSON, {payload_bytes} bytes payload"
        )
    return json_bytes, payload_bytes


def decode_fields(text: bytes) -> Fields:
    """Parse the JSON object of a frame. Raises `ProtocolBroken`."""
    try:
        fields: object = json.loads(text)
    except ValueError as error:
        raise ProtocolBroken("the frame does not contain JSON") from error
    if not isinstance(fields, dict):
        raise ProtocolBroken("the frame's JSON is not an object")
    return cast("Fields", fields)


def decode_frame(frame: bytes) -> tuple[Fields, bytes]:
    """Return what a whole frame holds. Raises `ProtocolBroken`."""
    if len(frame) < HEAD.size:
        raise ProtocolBroken("a frame without its head")
    json_bytes, payload_bytes = decode_head(frame[: HEAD.size])
    end = HEAD.size + json_bytes
    if len(frame) != end + payload_bytes:
        raise ProtocolBroken("a frame of another length than it says")
    return decode_fields(frame[HEAD.size : end]), frame[end:]


def read_frame(stream: BinaryIO) -> tuple[Fields, bytes] | None:
    """Read one frame (blocking); `None` at the end of the stream, also within a frame."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    json_bytes, payload_bytes = decode_head(head)
    text, payload = stream.read(json_bytes), stream.read(payload_bytes)
    if len(text) < json_bytes or len(payload) < payload_bytes:
        return None
    return decode_fields(text), payload


async def receive_frame(stream: "StreamReader") -> tuple[Fields, bytes] | None:
    """Read one frame; `None` where the stream has ended, or brings what is no frame."""
    try:
        json_bytes, payload_bytes = decode_head(await stream.readexactly(HEAD.size))
        fields = decode_fields(await stream.readexactly(json_bytes))
        return fields, await stream.readexactly(payload_bytes)
    except (EOFError, ConnectionError, ProtocolBroken):
        return None
