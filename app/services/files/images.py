"""What an image is by its first bytes, and its size by its header. Nothing is decoded.

Sources: PNG (W3C, 11.2.2), GIF89a (18), JPEG (ITU T.81, B.2.2), WebP (RFC 9649, 2.5 to 2.7).
"""

from typing import NamedTuple

from app.services.files.errors import FileTooLarge, FileUnreadable
from app.services.files.limits import PIXELS

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GIF = (b"GIF87a", b"GIF89a")
_MEGAPIXEL = 1_000_000
_NO_FRAME_HEADERS = frozenset((0xC4, 0xC8, 0xCC))
"""JPEG markers from C0 to CF that begin no frame: tables, and reserved."""
_WITHOUT_LENGTH = frozenset((0x01, 0xFF, *range(0xD0, 0xD9)))
_MOST_SEGMENTS = 10_000


class Image(NamedTuple):
    """The kind and the size of an image."""

    media_type: str
    width: int
    """In pixels."""
    height: int


def image_of(data: bytes) -> Image | None:
    """Return what an image says of itself; `None` for what is no PNG, JPEG, WebP or GIF.

    Raises `FileUnreadable` where its header is broken, and `FileTooLarge` above 25 megapixels.
    """
    sniffed = _sniff(data)
    if sniffed is None:
        return None
    media_type, size = sniffed
    if size is None or not all(size):
        raise FileUnreadable("The image has no readable header.")
    width, height = size
    if width * height > PIXELS:
        raise FileTooLarge(f"An image may have {PIXELS // _MEGAPIXEL} megapixels at most.")
    return Image(media_type, width, height)


def _sniff(data: bytes) -> tuple[str, tuple[int, int] | None] | None:
    if data.startswith(_PNG):
        return "image/png", _png_size(data)
    if data.startswith(_JPEG):
        return "image/jpeg", _jpeg_size(data)
    if data.startswith(_GIF):
        return "image/gif", _gif_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp", _webp_size(data)
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[12:16] != b"IHDR" or len(data) < 33:  # noqa: PLR2004  # signature and first chunk
        return None
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def _gif_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 13:  # noqa: PLR2004  # signature and screen descriptor
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Go from segment to segment until the header of the frame."""
    place = 2
    for _ in range(_MOST_SEGMENTS):
        if place + 9 > len(data) or data[place] != 0xFF:  # noqa: PLR2004  # a marker's first byte
            return None
        marker = data[place + 1]
        if marker in _WITHOUT_LENGTH:
            place += 1 if marker == 0xFF else 2  # noqa: PLR2004  # a fill byte
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_HEADERS:  # noqa: PLR2004
            height = int.from_bytes(data[place + 5 : place + 7])
            return int.from_bytes(data[place + 7 : place + 9]), height
        length = int.from_bytes(data[place + 2 : place + 4])
        if length < 2:  # noqa: PLR2004  # it counts itself
            return None
        place += 2 + length
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:  # noqa: PLR2004  # the largest of the three headers
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L" and data[20] == 0x2F:  # noqa: PLR2004  # its signature
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return (
            int.from_bytes(data[26:28], "little") & 0x3FFF,
            int.from_bytes(data[28:30], "little") & 0x3FFF,
        )
    return None
