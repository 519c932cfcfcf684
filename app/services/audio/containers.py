"""What stands around packets of sound: pages of Ogg (RFC 3533, RFC 7845), and headers of ADTS."""

import struct
from collections.abc import Sequence
from functools import cache

_OPUS_RATE_HZ = 48_000
"""Of the positions in a stream of Opus, whatever the rate of its samples is."""
_SERIAL = 1
_FIRST, _LAST = 2, 4
_CRC_POLYNOMIAL = 0x04C11DB7
_PAGE_PACKETS = 31
"""A page has at most 255 segments of 255 bytes, and no packet has 2,040 bytes."""
_AAC_LC, _AAC_24_KHZ, _MONO = 1, 6, 1
_ADTS_BYTES = 7


class OggOpusPages:
    """Writes one stream of Opus, a page for what comes at once."""

    def __init__(self, rate_hz: int, frame_samples: int, skipped_samples: int) -> None:
        """`skipped_samples` at the beginning, of 48 kHz, are not played."""
        self._frame_samples = frame_samples * _OPUS_RATE_HZ // rate_hz
        self._skipped_samples = skipped_samples
        self._rate_hz = rate_hz
        self._waiting: list[bytes] = []
        self._position = 0
        self._page_count = 0

    def begin(self) -> bytes:
        """Return the two pages of the stream's head."""
        head = struct.pack(
            "<8sBBHIhB", b"OpusHead", 1, 1, self._skipped_samples, self._rate_hz, 0, 0
        )
        tags = struct.pack("<8sI", b"OpusTags", 0) + bytes(4)
        return self._page([head], _FIRST, 0) + self._page([tags], 0, 0)

    def add(self, packets: Sequence[bytes]) -> bytes:
        """Take packets; return pages with all but the last of them."""
        self._waiting += packets
        pages = b""
        while len(self._waiting) > 1:
            part = self._waiting[: min(_PAGE_PACKETS, len(self._waiting) - 1)]
            del self._waiting[: len(part)]
            self._position += self._frame_samples * len(part)
            pages += self._page(part, 0, self._position)
        return pages

    def end(self, samples: int) -> bytes:
        """Return the last page, which says how many samples, of the stream's rate, are played."""
        self._position += self._frame_samples * len(self._waiting)
        played = samples * _OPUS_RATE_HZ // self._rate_hz
        return self._page(self._waiting, _LAST, min(self._position, self._skipped_samples + played))

    def _page(self, packets: Sequence[bytes], flags: int, position: int) -> bytes:
        lacing = b"".join(
            b"\xff" * (len(packet) // 255) + bytes((len(packet) % 255,)) for packet in packets
        )
        fields = b"OggS", 0, flags, position, _SERIAL, self._page_count
        self._page_count += 1
        body = bytes((len(lacing),)) + lacing + b"".join(packets)
        unsigned = struct.pack("<4sBBqIII", *fields, 0) + body
        return struct.pack("<4sBBqIII", *fields, _crc_32(unsigned)) + body


def adts_frame(packet: bytes) -> bytes:
    """Return a packet of AAC LC, mono at 24 kHz, with its header (ISO/IEC 14496-3, 1.A.2.2)."""
    length = len(packet) + _ADTS_BYTES
    bits = 0xFFF1 << 40 | _AAC_LC << 38 | _AAC_24_KHZ << 34 | _MONO << 30
    bits |= length << 13 | 0x7FF << 2  # a variable rate, one block
    return bits.to_bytes(_ADTS_BYTES, "big") + packet


def _crc_32(data: bytes) -> int:
    table, crc = _crc_table(), 0
    for byte in data:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[(crc >> 24) ^ byte]
    return crc


@cache
def _crc_table() -> tuple[int, ...]:
    table: list[int] = []
    for byte in range(256):
        crc = byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ _CRC_POLYNOMIAL if crc >> 31 else crc << 1) & 0xFFFFFFFF
        table.append(crc)
    return tuple(table)
