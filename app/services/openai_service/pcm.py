"""What comes back from a request for PCM: PCM, a WAV file around it, or something else."""

import struct

from app.services.ports import UpstreamIncomplete

SAMPLE_RATE_HZ = 24_000

_SIGNATURE_BYTES = 4
_MP3_SNIFF_BYTES = 2048
"""A Layer III frame has at most 1441 bytes, and the head of the next must be seen too."""
_MAX_HEADER_BYTES = 1 << 16
_LONGEST_SECONDS, _LONGEST_SECONDS_A_CHARACTER = 30, 1
"""A slow reader takes a tenth of a second for a character; digits and CJK take up to half."""
_MIN_UNKNOWN_SIZE = 0x7FFFF000
"""Writers that stream put the largest number, or nearly, where the length belongs."""

_KBPS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Of Layer III, for MPEG-1 and for its two half-rate relatives."""
_HZ = (44_100, 48_000, 32_000)
_FORMAT_PCM = (1, 1, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * 2, 2, 16)
_EXTENSIBLE = 0xFFFE


class PcmReader:
    """Turns pieces of any length into whole 16-bit samples.

    The header of a WAV file with the right samples is taken off. Other WAV files, MP3, Ogg
    and FLAC raise `UpstreamIncomplete`: played as samples they are noise. Bare PCM has no mark
    of its own, so MP3 without a tag is believed only where two frames follow each other.
    """

    __slots__ = ("_expected_bytes", "_half", "_head", "_is_sniffed", "_max_bytes", "_pcm_bytes")

    def __init__(self, text: str) -> None:
        """Prepare for the speech of `text`; more than anyone could need for it is refused."""
        seconds = _LONGEST_SECONDS + _LONGEST_SECONDS_A_CHARACTER * len(text)
        self._max_bytes = 2 * SAMPLE_RATE_HZ * seconds
        self._head: bytearray = bytearray()
        self._is_sniffed = False
        self._half: bytes = b""
        self._pcm_bytes = 0
        self._expected_bytes: int | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes and return the samples that they complete."""
        if self._is_sniffed:
            return self._whole_samples(piece)
        self._head += piece
        return self._sniff(at_end=False)

    def end(self) -> bytes:
        """Return what was held back; half a sample is dropped. Raises where no sample ever came."""
        samples = b"" if self._is_sniffed else self._sniff(at_end=True)
        if self._pcm_bytes == 0:
            raise UpstreamIncomplete("The AI provider sent no speech.")
        return samples

    def _whole_samples(self, piece: bytes) -> bytes:
        if self._half:
            piece = self._half + piece
        if self._expected_bytes is not None:  # what follows the samples in a file is not sound
            piece = piece[: self._expected_bytes - self._pcm_bytes]
        length = len(piece) & ~1
        self._half = piece[length:]
        self._pcm_bytes += length
        if self._pcm_bytes > self._max_bytes:
            raise UpstreamIncomplete("The AI provider's speech is far longer than its text.")
        return piece[:length]

    def _sniff(self, *, at_end: bool) -> bytes:
        head = bytes(self._head)
        if len(head) < _SIGNATURE_BYTES and not at_end:
            return b""
        start: int | None = 0
        if head.startswith(b"RIFF"):
            start = self._find_samples(head)
            if start is None and at_end:
                raise _not_pcm("a WAV file that breaks off")
        elif head.startswith(b"ID3"):
            raise _not_pcm("MP3")
        elif head.startswith((b"OggS", b"fLaC")):
            raise _not_pcm("Ogg or FLAC")
        elif (frame_bytes := _mp3_frame_bytes(head)) is not None:
            if len(head) < _MP3_SNIFF_BYTES and not at_end:
                start = None
            elif _mp3_frame_bytes(head[frame_bytes:]) is not None:
                raise _not_pcm("MP3")
        if start is None:
            return b""
        self._is_sniffed = True
        self._head.clear()
        return self._whole_samples(head[start:])

    def _find_samples(self, head: bytes) -> int | None:
        """Return where the samples of a WAV file begin; `None` where that is still to come."""
        position, is_right = 12, False
        while len(head) >= position + 8:
            name, size = struct.unpack_from("<4sI", head, position)
            position += 8
            if name == b"data":
                if not is_right:
                    raise _not_pcm("a WAV file of another kind")
                if 0 < size < _MIN_UNKNOWN_SIZE:
                    self._expected_bytes = size
                return position
            if name == b"fmt ":
                if len(head) < position + 16:
                    break
                tag, *rest = struct.unpack_from("<HHIIHH", head, position)
                is_right = (1 if tag == _EXTENSIBLE else tag, *rest) == _FORMAT_PCM
            position += size + (size & 1)
        if len(head) > _MAX_HEADER_BYTES:
            raise _not_pcm("a WAV file without an end to its header")
        return None


def _not_pcm(what: str) -> UpstreamIncomplete:
    return UpstreamIncomplete(
        f"The AI provider sent {what} where 24 kHz 16-bit mono PCM was asked for; check TTS_MODEL."
    )


def _mp3_frame_bytes(head: bytes) -> int | None:
    """Return the length of the Layer III frame that begins here; `None` where none does.

    ISO 11172-3, 2.4.1.3: sync, version, layer, bit rate, sample rate, padding.
    """
    if len(head) < _SIGNATURE_BYTES:
        return None
    word = int.from_bytes(head[:_SIGNATURE_BYTES], "big")
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
