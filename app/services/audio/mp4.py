"""A look at the index of an MP4 file before FFmpeg reads it.

FFmpeg makes an entry of 24 bytes for each sample that an index claims, and a claim costs
nothing: four bytes can ask for gigabytes.
"""

import struct
from collections.abc import Iterator, Sequence

from app.services.audio.errors import AudioUnreadable

_MAX_ENTRIES = 1_000_000
_MAX_BOXES = 50_000
_MAX_DEPTH = 8
_PARENTS = {b"moov", b"trak", b"edts", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf"}
_TAGS = {b"udta", b"meta", b"ID32", b"uuid"}
_BOMBS = {b"cmov"}
# Where in the body of a box its number of entries stands.
_COUNT_OFFSETS = {
    b"stsz": 8,
    b"stz2": 8,
    b"trun": 4,
    b"ctts": 4,
    b"stts": 4,
    b"stco": 4,
    b"co64": 4,
    b"stsc": 4,
    b"stss": 4,
    b"elst": 4,
    b"saio": 4,
}


def sanitize_mp4(data: bytes) -> bytes:
    """Return `data` with its tags marked as free space.

    Raises `AudioUnreadable` where the index claims more than ten minutes of sound can have.
    """
    entries, tags = 0, list[int]()
    for count, (kind, position, body, end) in enumerate(_boxes(data)):
        offset = _COUNT_OFFSETS.get(kind)
        if offset is not None and body + offset + 4 <= end:
            entries += struct.unpack_from(">I", data, body + offset)[0]
        if kind in _TAGS:
            tags.append(position)
        if entries > _MAX_ENTRIES or count > _MAX_BOXES or kind in _BOMBS:
            raise AudioUnreadable("The index of this MP4 file is broken.")
    return _renamed(data, tags) if tags else data


def _renamed(data: bytes, places: Sequence[int]) -> bytes:
    pieces: list[bytes | memoryview] = []
    rest = 0
    for place in places:
        pieces += [memoryview(data)[rest : place + 4], b"free"]
        rest = place + 8
    return b"".join([*pieces, memoryview(data)[rest:]])


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield kind, place, begin of the body and end of each box, those inside others included."""
    unfinished = [(0, len(data))]
    while unfinished:
        position, end = unfinished.pop()
        if position + 8 > end:
            continue
        size, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if size == 1 and body + 8 <= end:
            size = struct.unpack_from(">Q", data, body)[0]
            body += 8
        box_end = min(position + size, end) if size else end
        if box_end < body:
            continue
        yield kind, position, body, box_end
        unfinished.append((box_end, end))
        if kind in _PARENTS and len(unfinished) <= _MAX_DEPTH:
            unfinished.append((body, box_end))
