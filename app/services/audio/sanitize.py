"""Takes from a sound file what is not sound, before FFmpeg reads it.

Tags, pictures and chapters are of no use here, and in FFmpeg they cost time that grows with
the square of their number, and memory that their sizes only claim: minutes and gigabytes.
"""

import struct

from app.services.audio.errors import AudioUnreadable
from app.services.audio.mp4 import sanitize_mp4
from app.services.audio.ogg import check_ogg
from app.services.audio.sniff import Sniffed
from app.services.ports import AudioFormat

_MAX_PIECES = 1000
_STREAMINFO_BYTES = 34
# SimpleTag, AttachedFile and ChapterUID.
_WEBM_EXTRAS = (b"\x67\xc8", b"\x61\xa7", b"\x73\xc4")
_MAX_WEBM_EXTRAS = 2000


def sanitize_audio(data: bytes, sniffed: Sniffed) -> bytes:
    """Return `data` without its extras, as far as its format lets go of them.

    Costs at most one copy. Raises `AudioUnreadable` where the structure is broken, or has
    more extras than any recorder writes.
    """
    match sniffed.format:
        case AudioFormat.WAV:
            return _sanitize_wav(data)
        case AudioFormat.FLAC:
            return _sanitize_flac(data)
        case AudioFormat.MP3:
            return _sanitize_mp3(data, sniffed.offset_bytes)
        case AudioFormat.MP4:
            return sanitize_mp4(data)
        case AudioFormat.OGG:
            check_ogg(data)
        case AudioFormat.WEBM:
            _check_webm(data)
    return data


def _sanitize_wav(data: bytes) -> bytes:
    """Keep the chunks `fmt ` and `data`; what lies about its size ends where the file ends."""
    sound_format, position = b"", 12
    for _ in range(_MAX_PIECES):
        if position + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, position)
        body = position + 8
        rest = len(data) - body
        if kind == b"fmt ":
            sound_format = data[body : body + min(size, 64)]
        if kind == b"data" and sound_format:
            sound_bytes = size if 0 < size <= rest else rest  # live recorders write 0 or 2^32-1
            head = struct.pack("<4sI", b"fmt ", len(sound_format)) + sound_format
            head += struct.pack("<4sI", b"data", sound_bytes)
            riff = struct.pack("<4sI4s", b"RIFF", 4 + len(head) + sound_bytes, b"WAVE")
            return b"".join([riff, head, memoryview(data)[body : body + sound_bytes]])
        position = body + size + size % 2
    raise AudioUnreadable("This WAV file has no sound in it.")


def _sanitize_flac(data: bytes) -> bytes:
    """Keep STREAMINFO of the metadata blocks (RFC 9639, section 8)."""
    position = 4
    for _ in range(_MAX_PIECES):
        header = data[position : position + 4]
        if len(header) < 4:  # noqa: PLR2004
            break
        position += 4 + int.from_bytes(header[1:], "big")
        if header[0] & 0x80:
            head = b"fLaC\x80" + _STREAMINFO_BYTES.to_bytes(3, "big")
            return b"".join([head, data[8 : 8 + _STREAMINFO_BYTES], memoryview(data)[position:]])
    raise AudioUnreadable("The head of this FLAC file is broken.")


def _sanitize_mp3(data: bytes, offset_bytes: int) -> bytes:
    """Leave out the tags before `offset_bytes`, and hide those at the end.

    FFmpeg looks for ID3v1 and APE tags at fixed distances from the end.
    """
    has_tail = data[-128:].startswith(b"TAG") or b"APETAGEX" in data[-192:]
    if not offset_bytes and not has_tail:
        return data
    return b"".join([memoryview(data)[offset_bytes:], bytes(192 if has_tail else 0)])


def _check_webm(data: bytes) -> None:
    """Refuse more extras than chance puts into a file of this size."""
    most = _MAX_WEBM_EXTRAS + len(data) // 16_384
    if any(data.count(element_id) > most for element_id in _WEBM_EXTRAS):
        raise AudioUnreadable("This WebM file has too many tags, attachments or chapters.")
