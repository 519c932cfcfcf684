"""Bodies that a server compressed, although we ask for plain bytes."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping

from app.services.provider_http.connection import NotHttpError

_PIECE_BYTES = 256 << 10
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_GZIP_MAGIC = b"\x1f\x8b"
_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
_FREE_BYTES = 4 << 20
_MAX_RATIO = 64
"""Events of an answer shrink to a twentieth at best; above `_FREE_BYTES` more is an attack."""


def make_decompressor(headers: Mapping[str, str]) -> "Decompressor | None":
    """Return what undoes `Content-Encoding`; `None` where there is nothing to undo.

    A coding that nobody knows, as `none` or `utf-8`, means that the body is as it is.
    """
    named = headers.get("Content-Encoding", "").lower().split(",")
    return Decompressor() if _CODINGS.intersection(map(str.strip, named)) else None


class Decompressor:
    """Inflates gzip or zlib, a piece at a time; knows nothing of sockets."""

    __slots__ = ("_inflater", "_is_full", "_rest", "_unzipped_bytes", "_zipped_bytes")

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._rest: bytes = b""
        self._is_full = False
        """True where the last piece had no room for all that was inflated."""
        self._zipped_bytes = 0
        self._unzipped_bytes = 0

    @property
    def has_more(self) -> bool:
        """True where bytes that were fed are still to be inflated."""
        return bool(self._rest) or self._is_full

    def feed(self, zipped: bytes) -> None:
        """Take the next bytes."""
        self._zipped_bytes += len(zipped)
        self._rest += zipped

    def take(self) -> bytes:
        """Return at most 256 KB of what was fed. Raises `NotHttpError`."""
        if self._inflater.eof:
            if not _GZIP_MAGIC.startswith(self._rest[:2]):  # padding
                self._rest = b""
                return b""
            self._inflater = zlib.decompressobj(_GZIP_OR_ZLIB)  # a gateway that flushes
        try:
            piece = self._inflater.decompress(self._rest, _PIECE_BYTES)
        except zlib.error:
            raise NotHttpError("the body is not compressed as its header says") from None
        self._rest = self._inflater.unconsumed_tail or self._inflater.unused_data
        self._is_full = len(piece) == _PIECE_BYTES
        self._unzipped_bytes += len(piece)
        if self._unzipped_bytes > max(_FREE_BYTES, _MAX_RATIO * self._zipped_bytes):
            raise NotHttpError("the body inflates to more than any answer")
        return piece

    def end(self) -> None:
        """Check that the body is whole. Raises `ConnectionError`."""
        if self._zipped_bytes and not self._inflater.eof:
            raise ConnectionResetError("the compressed body breaks off")


async def read_decompressed(
    decompressor: Decompressor, read_any: Callable[[float], Awaitable[bytes]], deadline: float
) -> bytes:
    """Return the next piece of the body that `read_any` yields compressed; `b""` is the end."""
    while True:
        if decompressor.has_more:
            await asyncio.sleep(0)  # a kilobyte may become a megabyte: others come in between
        elif zipped := await read_any(deadline):
            decompressor.feed(zipped)
        else:
            decompressor.end()
            return b""
        if piece := decompressor.take():
            return piece
