"""The uploads of `bench.voice`: a recording, and one that is far too long."""

import struct
from pathlib import Path

from app.services.ports import AudioFormat
from tests.voice.sounds import OPUS_HEAD, encoded, ogg_pages, samples_of

RECORDING = (Path(__file__).parent.parent / "tests/audio/anna_01.wav").read_bytes()

BROWSER_RECORDING = encoded(samples_of(RECORDING), AudioFormat.WEBM, rate_hz=48_000, is_live=True)
"""The same as Chromium records it."""

_UPLOAD_BYTES = 25 * 1024 * 1024
_BOUNDARY = b"----voice"
CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY.decode()}"
_PACKET = b"\x1b\x81\x00" + bytes(42)
"""60 ms of Opus in 45 bytes: 6 kbit/s."""
_PACKETS_A_PAGE = 250


def upload(session_id: str, recording: bytes) -> bytes:
    """Return the bytes of a request to `/messages/voice`."""
    body = upload_body(session_id, recording)
    head = (
        "POST /messages/voice HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def upload_body(session_id: str, recording: bytes) -> bytes:
    """Return the multipart body."""
    parts = [
        b"--" + _BOUNDARY,
        b'Content-Disposition: form-data; name="session_id"',
        b"",
        session_id.encode(),
        b"--" + _BOUNDARY,
        b'Content-Disposition: form-data; name="audio"; filename="a"',
        b"Content-Type: application/octet-stream",
        b"",
        recording,
        b"--" + _BOUNDARY + b"--",
        b"",
    ]
    return b"\r\n".join(parts)


def hours_of_opus() -> tuple[bytes, float]:
    """Return 25 MB of Ogg Opus and its duration in hours."""
    pages = [
        ogg_pages(OPUS_HEAD, is_first=True),
        ogg_pages(b"OpusTags" + struct.pack("<I", 1) + b"v" + bytes(4)),
    ]
    size, packets = sum(map(len, pages)), 0
    lacing = bytes([_PACKETS_A_PAGE]) + bytes([len(_PACKET)]) * _PACKETS_A_PAGE
    body = _PACKET * _PACKETS_A_PAGE
    page_bytes = 26 + len(lacing) + len(body)
    while size + page_bytes <= _UPLOAD_BYTES:
        packets += _PACKETS_A_PAGE
        granule = packets * 60 * 48
        pages.append(
            struct.pack("<4sBBqIII", b"OggS", 0, 0, granule, 1, len(pages), 0) + lacing + body
        )
        size += page_bytes
    return b"".join(pages), packets * 0.06 / 3600
