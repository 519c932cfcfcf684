"""A look at the pages of an Ogg file before FFmpeg reads it (RFC 3533).

Sound comes in small packets. A large one is a head with comments, and a picture in it costs as much
as its bytes; many comments cost FFmpeg time that grows with the square of their number.
"""

import struct
from dataclasses import dataclass, field

from app.services.audio.errors import AudioUnreadable

_MAX_SOUND_BYTES = 65_536
_MAX_HEAD_BYTES = 16 << 20
_MAX_COMMENTS = 1000
_MAX_PAGES = 100_000
_PAGE_BYTES = 27
_WHOLE_SEGMENT = 255
_COMMENT_MAGICS = (b"OpusTags", b"\x03vorbis", b"\x84", b"\x04")
"""How the comments of Opus, Vorbis and FLAC (the last block, or another) begin."""
_FLAC_HEAD_BYTES = 4
_FLAC_PICTURE = 6


@dataclass(slots=True)
class _LogicalStream:
    """The packet that is being put together, of one of the streams in the file."""

    size: int = 0
    pieces: list[bytes] = field(default_factory=list[bytes])

    def add(self, segment: bytes) -> None:
        self.size += len(segment)
        if self.size > _MAX_HEAD_BYTES:
            raise _too_large()
        self.pieces.append(segment)

    def end(self) -> None:
        """Judge the packet, and begin the next one."""
        if self.size > _MAX_SOUND_BYTES and not _is_bounded_head(b"".join(self.pieces)):
            raise _too_large()
        self.size = 0
        self.pieces.clear()


def check_ogg(data: bytes) -> None:
    """Raise `AudioUnreadable` where a packet is neither sound nor a head of bounded cost."""
    streams: dict[bytes, _LogicalStream] = {}
    position = 0
    for _ in range(_MAX_PAGES):
        position = data.find(b"OggS", position)
        if position < 0 or position + _PAGE_BYTES > len(data):
            break
        body = position + _PAGE_BYTES + data[position + 26]
        lacing = data[position + _PAGE_BYTES : body]
        stream = streams.setdefault(data[position + 14 : position + 18], _LogicalStream())
        position = _add_page(stream, lacing, data, body)
    else:
        raise _too_large()
    for stream in streams.values():
        stream.end()


def _add_page(stream: _LogicalStream, lacing: bytes, data: bytes, body: int) -> int:
    """Add a page to its stream's packets; return where it ends.

    What begins and ends within the page is smaller than a page, and of no interest.
    """
    end = body + sum(lacing)
    last_of_first = next((i for i, size in enumerate(lacing) if size < _WHOLE_SEGMENT), None)
    if last_of_first is None:
        stream.add(data[body:end])
        return end
    if stream.size:
        stream.add(data[body : body + sum(lacing[: last_of_first + 1])])
    stream.end()
    unfinished_bytes = _WHOLE_SEGMENT * (len(lacing) - len(lacing.rstrip(b"\xff")))
    if unfinished_bytes:
        stream.add(data[end - unfinished_bytes : end])
    return end


def _is_bounded_head(packet: bytes) -> bool:
    if packet[0] & 0x7F == _FLAC_PICTURE and packet[1:_FLAC_HEAD_BYTES] == _length(packet):
        return True
    for magic in _COMMENT_MAGICS:
        if packet.startswith(magic):
            start = len(magic) if len(magic) > 1 else _FLAC_HEAD_BYTES
            return _comment_count(packet, start) <= _MAX_COMMENTS
    return _comment_count(packet, 0) <= _MAX_COMMENTS  # Speex has no magic


def _length(packet: bytes) -> bytes:
    return (len(packet) - _FLAC_HEAD_BYTES).to_bytes(3, "big")


def _comment_count(packet: bytes, start: int) -> int:
    """Return how many comments a head says it has; more than may, where it is none."""
    try:
        (vendor_bytes,) = struct.unpack_from("<I", packet, start)
        (count,) = struct.unpack_from("<I", packet, start + 4 + vendor_bytes)
    except struct.error:
        return _MAX_COMMENTS + 1
    return count


def _too_large() -> AudioUnreadable:
    return AudioUnreadable("This Ogg file has too large a head, or too many pages.")
