"""What kind of sound file some bytes are, told from the bytes alone."""

import re
from dataclasses import dataclass

from app.services.ports import AudioFormat

_ZEROS = re.compile(rb"\0*")
_OGG_CODECS = (b"OpusHead", b"\x01vorbis", b"\x7fFLAC", b"Speex   ")
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_DOC_TYPE_ID = b"\x42\x82"

_MAX_TAGS = 4
_MAX_MP3_FRAME_BYTES = 1441
_FRAMES_IN_A_ROW = 3

_MP3_KBPS = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES_HZ = {
    3: (44100, 48000, 32000),
    2: (22050, 24000, 16000),
    0: (11025, 12000, 8000),
}


@dataclass(frozen=True, slots=True)
class Sniffed:
    """What the bytes are, and where the first frame of an MP3 begins."""

    format: AudioFormat
    offset_bytes: int = 0


def sniff(data: bytes) -> Sniffed | None:
    """Return what `data` is, `None` where it is none of the accepted formats."""
    if data[:4] in {b"RIFF", b"RF64"} and data[8:12] == b"WAVE":
        return Sniffed(AudioFormat.WAV)
    if data[:4] == b"fLaC":
        return Sniffed(AudioFormat.FLAC)
    if data[4:8] == b"ftyp":
        return Sniffed(AudioFormat.MP4)
    if data[:4] == _EBML_MAGIC:
        return Sniffed(AudioFormat.WEBM) if _doc_type(data) in {b"webm", b"matroska"} else None
    if data[:4] == b"OggS":
        return Sniffed(AudioFormat.OGG) if _begins_with_ogg_audio(data) else None
    first_frame = _first_mp3_frame(data, _end_of_id3(data))
    return None if first_frame is None else Sniffed(AudioFormat.MP3, first_frame)


def _begins_with_ogg_audio(data: bytes) -> bool:
    segment_count = data[26] if len(data) > 26 else 0  # noqa: PLR2004  # RFC 3533, section 6
    return data.startswith(_OGG_CODECS, 27 + segment_count)


def _doc_type(data: bytes) -> bytes:
    """Return the DocType of an EBML header (RFC 8794, section 11), empty if it has none."""
    header_bytes, position = _ebml_size(data, len(_EBML_MAGIC))
    end = min(position + header_bytes, len(data), 256)
    while position < end:
        element_id = data[position : position + _vint_length(data, position)]
        size, body = _ebml_size(data, position + len(element_id))
        if element_id == _DOC_TYPE_ID:
            return data[body : body + size].rstrip(b"\0")
        position = body + size
    return b""


def _vint_length(data: bytes, position: int) -> int:
    first = data[position] if position < len(data) else 0
    return 9 - first.bit_length()


def _ebml_size(data: bytes, position: int) -> tuple[int, int]:
    """Return the size written at `position`, and where the body of that size begins."""
    length = _vint_length(data, position)
    written = int.from_bytes(data[position : position + length], "big")
    return written & ((1 << (7 * length)) - 1), position + length


def _end_of_id3(data: bytes) -> int:
    """Return where the ID3v2 tags and the zeros behind them end; 0 where there are none."""
    position = 0
    for _ in range(_MAX_TAGS):
        header = data[position : position + 10]
        if len(header) < 10 or header[:3] != b"ID3" or max(header[6:10]) > 127:  # noqa: PLR2004
            break
        size = 0
        for seven_bits in header[6:10]:
            size = size << 7 | seven_bits
        has_footer = bool(header[5] & 0x10)
        position += 10 + size + (10 if has_footer else 0)
        zeros = _ZEROS.match(data, position)
        position = zeros.end() if zeros else position
    return position


def _first_mp3_frame(data: bytes, start: int) -> int | None:
    """Return where frames begin that follow each other, within one frame's length of `start`.

    A file cut out of a stream begins in the middle of a frame; three headers in a row that
    agree are no accident (about 1 in 10^11 in noise).
    """
    end = start + _MAX_MP3_FRAME_BYTES
    position = data.find(b"\xff", start, end)
    while position >= 0:
        if _are_mp3_frames(data, position):
            return position
        position = data.find(b"\xff", position + 1, end)
    return None


def _are_mp3_frames(data: bytes, position: int) -> bool:
    kinds: set[tuple[int, int]] = set()
    for count in range(_FRAMES_IN_A_ROW):
        if position == len(data) and count == _FRAMES_IN_A_ROW - 1:
            return True
        header = _mp3_frame(data, position)
        if header is None:
            return False
        kind, length = header
        kinds.add(kind)
        if len(kinds) > 1:
            return False
        position += length
    return True


def _mp3_frame(data: bytes, position: int) -> tuple[tuple[int, int], int] | None:
    """Return version and sample rate, and the length in bytes, of the frame at `position`."""
    header = data[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:  # noqa: PLR2004
        return None  # no sync, or not layer III
    version = header[1] >> 3 & 3
    bit_rate_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    rates = _MP3_RATES_HZ.get(version)
    if rates is None or rate_index == 3 or bit_rate_index in {0, 15}:  # noqa: PLR2004
        return None
    full = version == 3  # noqa: PLR2004  # MPEG-1; the others have half as many samples a frame
    kbps = _MP3_KBPS[1 if full else 2][bit_rate_index]
    padding = header[2] >> 1 & 1
    length = (144 if full else 72) * kbps * 1000 // rates[rate_index] + padding
    return (version, rates[rate_index]), length
