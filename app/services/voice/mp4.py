"""A look at the index of an MP4 file before FFmpeg reads it.

FFmpeg makes an entry of 24 bytes for each sample that an index claims, and a claim costs
nothing: four bytes can ask for gigabytes.
"""

import struct
from collections.abc import Iterator

_MAX_SAMPLES = 1_000_000
_MAX_BOXES = 50_000
_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_COUNT_OFFSETS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"ctts": 4, b"stts": 4}


def claims_too_many_samples(data: bytes) -> bool:
    """Tell whether the index claims more samples than ten minutes of speech can have."""
    total = 0
    for count, (kind, body, end) in enumerate(_boxes(data, 0, len(data))):
        offset = _COUNT_OFFSETS.get(kind)
        if offset is not None and body + offset + 4 <= end:
            total += struct.unpack_from(">I", data, body + offset)[0]
        if total > _MAX_SAMPLES or count > _MAX_BOXES:
            return True
    return False


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin of the body and end of each box, those inside other boxes included."""
    while position + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        if size == 1 and body + 8 <= end:
            size = struct.unpack_from(">Q", data, body)[0]
            body += 8
        box_end = min(position + size, end) if size else end
        if box_end < body:
            return
        yield kind, body, box_end
        if kind in _PARENTS:
            yield from _boxes(data, body, box_end)
        position = box_end
