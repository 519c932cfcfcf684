"""Encode samples as FLAC (RFC 9639), with NumPy alone: one channel of 16 bits at 24 kHz.

Each block is predicted by the line through the two samples before, and what is left is coded with
Rice's code. That is the second of FLAC's fixed predictors: about half the size of speech as PCM.
"""

import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 24_000
_BLOCK_SAMPLES = 4096
_BLOCK_CODE, _LAST_BLOCK_CODE = 0b1100, 0b0111
_RATE_CODE, _WIDTH_CODE = 0b0111, 0b100
_ORDER = 2
_VERBATIM, _FIXED = 0b000001, 0b001000
_MOST_RICE_BITS = 14
_ESCAPED = 2**14
"""Zeros in a row that are more than any other code needs."""

Integers = NDArray[np.int64]
_Bits = NDArray[np.uint8]


class FlacEncoder:
    """Encodes one stream, whose length nobody knows when it begins."""

    def __init__(self) -> None:
        self._waiting = b""
        self._frame_count = 0
        self._has_begun = False

    def encode(self, pcm: bytes) -> bytes:
        """Take signed 16-bit little-endian samples; return the blocks that they complete."""
        pcm = self._waiting + pcm
        block_bytes = 2 * _BLOCK_SAMPLES
        end = len(pcm) // block_bytes * block_bytes
        self._waiting = pcm[end:]
        frames = [self._frame(pcm[at : at + block_bytes]) for at in range(0, end, block_bytes)]
        return b"".join((self._head(), *frames))

    def finish(self) -> bytes:
        """Return the last block. `encode` must not be called afterwards."""
        return self._head() + (self._frame(self._waiting) if self._waiting else b"")

    def _head(self) -> bytes:
        """Return the marker and STREAMINFO once; sizes, length and checksum are unknown."""
        if self._has_begun:
            return b""
        self._has_begun = True
        rate_channels_width = SAMPLE_RATE_HZ << 12 | 0 << 9 | 15 << 4
        info = struct.pack(">HH", _BLOCK_SAMPLES, _BLOCK_SAMPLES) + bytes(6)
        info += struct.pack(">II", rate_channels_width, 0) + bytes(16)
        return b"fLaC\x80" + len(info).to_bytes(3, "big") + info

    def _frame(self, pcm: bytes) -> bytes:
        samples = np.frombuffer(pcm, "<i2").astype(np.int64)
        is_last = len(samples) != _BLOCK_SAMPLES
        size_code = _LAST_BLOCK_CODE if is_last else _BLOCK_CODE
        head = bytes((0xFF, 0xF8, size_code << 4 | _RATE_CODE, _WIDTH_CODE << 1))
        head += _coded_number(self._frame_count)
        if is_last:
            head += struct.pack(">H", len(samples) - 1)
        self._frame_count += 1
        frame = head + bytes((_crc(head, _CRC_8, 8),)) + _subframe(samples)
        return frame + _crc(frame, _CRC_16, 16).to_bytes(2, "big")


def _subframe(samples: Integers) -> bytes:
    """Return a block's samples in their shortest form."""
    if len(samples) > _ORDER:
        residual = np.diff(samples, _ORDER)
        folded = (residual << 1) ^ (residual >> 63)  # the sign is the lowest bit
        rice_bits = min(_MOST_RICE_BITS, int(folded.mean() + 1).bit_length() - 1)
        coded = _rice(folded, rice_bits)
        if len(coded) < 16 * len(samples):
            start = _bits((_FIXED | _ORDER) << 1, 8)
            warm_up = [_bits(int(sample) & 0xFFFF, 16) for sample in samples[:_ORDER]]
            method = _bits(rice_bits, 2 + 4 + 4)  # 4-bit parameters, one partition
            return np.packbits(np.concatenate([start, *warm_up, method, coded])).tobytes()
    return bytes((_VERBATIM << 1,)) + samples.astype(">i2").tobytes()


def _rice(values: Integers, rice_bits: int) -> _Bits:
    """Return each value as so many zeros, a one, and its lowest `rice_bits` bits."""
    quotients = values >> rice_bits
    if int(quotients.max()) > _ESCAPED:
        return np.zeros(16 * (len(values) + _ORDER), np.uint8)  # verbatim is shorter
    ends = np.cumsum(quotients + 1 + rice_bits)
    bits = np.zeros(int(ends[-1]), np.uint8)
    ones = ends - rice_bits - 1
    bits[ones] = 1
    for place in range(rice_bits):
        bits[ones + 1 + place] = (values >> (rice_bits - 1 - place)) & 1
    return bits


def _bits(value: int, count: int) -> _Bits:
    return np.array([value >> (count - 1 - place) & 1 for place in range(count)], np.uint8)


def _coded_number(number: int) -> bytes:
    """Return a frame's number in the way of UTF-8, which goes on to 36 bits."""
    if number < 0x80:  # noqa: PLR2004  # seven bits
        return bytes((number,))
    tail: list[int] = []
    room = 6
    while number >= 1 << room:
        tail.insert(0, 0x80 | number & 0x3F)
        number >>= 6
        room -= 1
    lead = (0xFF << (room + 1)) & 0xFF
    return bytes((lead | number, *tail))


_CRC_8, _CRC_16 = 0x07, 0x8005


def _crc(data: bytes, polynomial: int, width: int) -> int:
    table = _crc_table(polynomial, width)
    mask, shift, crc = (1 << width) - 1, width - 8, 0
    for byte in data:
        crc = (crc << 8 & mask) ^ table[(crc >> shift) ^ byte]
    return crc


@cache
def _crc_table(polynomial: int, width: int) -> tuple[int, ...]:
    top, mask = 1 << (width - 1), (1 << width) - 1
    table: list[int] = []
    for byte in range(256):
        crc = byte << (width - 8)
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & mask
        table.append(crc)
    return tuple(table)
