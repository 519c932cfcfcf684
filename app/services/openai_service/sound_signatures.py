"""The first bytes of what is sometimes sent instead of samples: text, files, compressed sound."""

SIGNATURE_BYTES = 12
TEXT_SNIFF_BYTES = 64
"""Of samples, 64 bytes that are all printable happen once in 10^27 answers."""

_CONTAINERS = (
    (0, b"ID3", "MP3"),
    (0, b"OggS", "Ogg"),
    (0, b"fLaC", "FLAC"),
    (0, b"\x1a\x45\xdf\xa3", "WebM"),
    (4, b"ftyp", "MP4"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"RF64", "a WAV file of more than 4 GB"),
    (0, b"RIFX", "a big-endian WAV file"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x1f\x8b\x08", "gzip"),
)
_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Of Layer III, for MPEG-1 and for its two half-rate relatives."""
_HZ = (44_100, 48_000, 32_000)
_ADTS_HEADER_BYTES = 7
_SPACES = frozenset("\t\n\r\f")


def foreign_container(head: bytes) -> str | None:
    """Return the name of the file format that begins so; `None` where it is none of them."""
    for offset, signature, name in _CONTAINERS:
        if head.startswith(signature, offset):
            return name
    return None


def looks_like_text(head: bytes) -> bool:
    """Tell whether `head` is text without control characters, in UTF-8."""
    if not head:
        return False
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.end < len(head) or error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in _SPACES for character in text)


def mpeg_frame_bytes(head: bytes) -> int | None:
    """Return the length of the Layer III frame that begins here; `None` where none does.

    ISO 11172-3, 2.4.1.3: sync, version, layer, bit rate, sample rate, padding.
    """
    if len(head) < 4:  # noqa: PLR2004  # bytes of its header
        return None
    word = int.from_bytes(head[:4], "big")
    version, layer = word >> 19 & 3, word >> 17 & 3
    bit_rate, sample_rate, padding = word >> 12 & 15, word >> 10 & 3, word >> 9 & 1
    if word >> 21 != 0x7FF or version == 1 or layer != 1:  # noqa: PLR2004  # 11 set bits
        return None
    if bit_rate in {0, 15} or sample_rate == 3:  # noqa: PLR2004  # reserved
        return None
    is_mpeg1 = version == 3  # noqa: PLR2004  # 3, 2, 0: MPEG-1, 2, 2.5
    rate_hz = _HZ[sample_rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples_per_byte = 144_000 if is_mpeg1 else 72_000
    return samples_per_byte * _KBPS[is_mpeg1][bit_rate] // rate_hz + padding


def adts_frame_bytes(head: bytes) -> int | None:
    """Return the length of the AAC frame that begins here; `None` where none does.

    ISO 13818-7, 6.2: 12 bits of sync, layer 0, a sampling rate that exists, 13 bits of length.
    """
    if len(head) < _ADTS_HEADER_BYTES or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:  # noqa: PLR2004
        return None
    if head[2] >> 2 & 15 > 12:  # noqa: PLR2004  # reserved
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > _ADTS_HEADER_BYTES else None
