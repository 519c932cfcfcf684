"""What comes back from a request for PCM: PCM, a WAV file around it, or something else."""

import struct
from typing import TYPE_CHECKING, Final

from app.services.openai_service.sound_signatures import (
    SIGNATURE_BYTES,
    TEXT_SNIFF_BYTES,
    adts_frame_bytes,
    foreign_container,
    looks_like_text,
    mpeg_frame_bytes,
)
from app.services.ports import SampleFormat, UpstreamIncomplete

if TYPE_CHECKING:
    from app.services.audio.convert import SampleConverter

SAMPLE_RATE_HZ = 24_000

_FRAMES_SNIFF_BYTES = 2048
"""A Layer III frame has at most 1441 bytes, and the head of the next must be seen too."""
_MAX_HEADER_BYTES = 1 << 16
_LONGEST_SECONDS, _LONGEST_SECONDS_A_CHARACTER = 30, 1
"""A slow reader takes a tenth of a second for a character; digits and CJK take up to half."""
_MIN_UNKNOWN_SIZE = 0x7FFFF000
"""Writers that stream put the largest number, or nearly, where the length belongs."""

_FRAMES: Final = {"MP3": mpeg_frame_bytes, "AAC": adts_frame_bytes}
_DECODABLE = frozenset(("MP3", "Ogg"))
PLAIN = SampleFormat(SAMPLE_RATE_HZ, 1, 16)
"""What is asked for."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SUBFORMAT_OFFSET = 24


class CompressedSpeech(UpstreamIncomplete):
    """The provider sends MP3 or Ogg, its `container`; `head` is what of it was read."""

    def __init__(self, detail: str, container: str, head: bytes) -> None:
        super().__init__(detail)
        self.container = container
        self.head = head


class PcmReader:
    """Turns pieces of any length into whole 16-bit samples.

    The header of a WAV file is taken off; samples of another rate, width or number of channels are
    converted. Text and other containers raise `UpstreamIncomplete`: played as samples they are
    noise. MP3 and Ogg raise `CompressedSpeech`, of which a decoder makes samples. Bare PCM has no
    mark of its own, so MP3 and AAC without a tag are believed only where two frames follow each
    other.
    """

    __slots__ = (
        "_converter",
        "_expected_bytes",
        "_form",
        "_half",
        "_head",
        "_is_sniffed",
        "_max_bytes",
        "_model_setting",
        "_pcm_bytes",
        "_read_bytes",
    )

    def __init__(
        self, text: str, model_setting: str = "TTS_MODEL", form: SampleFormat = PLAIN
    ) -> None:
        """Prepare for the speech of `text`; more than anyone could need for it is refused.

        Errors name `model_setting`. `form` is what the samples are where no file says so.
        """
        self._form: SampleFormat = form
        self._converter: SampleConverter | None = None
        self._model_setting = model_setting
        seconds = _LONGEST_SECONDS + _LONGEST_SECONDS_A_CHARACTER * len(text)
        self._max_bytes = 2 * SAMPLE_RATE_HZ * seconds
        self._head: bytearray = bytearray()
        self._is_sniffed = False
        self._half: bytes = b""
        self._pcm_bytes = 0
        self._read_bytes = 0
        """Of samples as they come."""
        self._expected_bytes: int | None = None

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes and return the samples that they complete."""
        if self._is_sniffed:
            return self._whole_samples(piece)
        self._head += piece
        return self._sniff(at_end=False)

    def feed_decoded(self, samples: bytes, rate_hz: int) -> bytes:
        """Take what was made of compressed sound, 16-bit mono; return samples as `feed` does."""
        rest: bytes = b""
        form = SampleFormat(rate_hz, 1, 16)
        if not self._is_sniffed or form != self._form:
            rest = self._converter.finish() if self._converter else b""
            self._form, self._converter, self._is_sniffed = form, _converter_of(form), True
        return self._counted(rest) + self._whole_samples(samples)

    def end(self) -> bytes:
        """Return what was held back; half a sample is dropped. Raises where no sample ever came."""
        samples = b"" if self._is_sniffed else self._sniff(at_end=True)
        if self._converter:
            samples += self._counted(self._converter.finish())
        if self._pcm_bytes == 0:
            raise UpstreamIncomplete("The AI provider sent no speech.")
        return samples

    def _whole_samples(self, piece: bytes) -> bytes:
        if self._expected_bytes is not None:  # what follows the samples in a file is not sound
            piece = piece[: self._expected_bytes - self._read_bytes]
        self._read_bytes += len(piece)
        if self._converter:
            return self._counted(self._converter.feed(piece))
        if self._half:
            piece = self._half + piece
        length = len(piece) & ~1
        self._half = piece[length:]
        return self._counted(piece[:length])

    def _counted(self, pcm: bytes) -> bytes:
        self._pcm_bytes += len(pcm)
        if self._pcm_bytes > self._max_bytes:
            raise UpstreamIncomplete("The AI provider's speech is far longer than its text.")
        return pcm

    def _sniff(self, *, at_end: bool) -> bytes:
        head = bytes(self._head)
        if len(head) < SIGNATURE_BYTES and not at_end:
            return b""
        start: int | None = 0
        if head.startswith(b"RIFF"):
            start = self._find_samples(head)
            if start is None and at_end:
                raise self._not_pcm("a WAV file that breaks off")
        elif container := foreign_container(head):
            raise self._not_pcm(container, head)
        elif looks_like_text(head[:TEXT_SNIFF_BYTES]):
            if at_end or len(head) >= TEXT_SNIFF_BYTES:
                raise self._not_pcm("text")
            start = None
        elif (name := _compressed_frame(head)) is not None:
            if at_end or len(head) >= _FRAMES_SNIFF_BYTES:
                self._refuse_second_frame(head, name)
            else:
                start = None
        if start is None:
            return b""
        self._is_sniffed = True
        self._head.clear()
        self._converter = _converter_of(self._form)
        return self._whole_samples(head[start:])

    def _find_samples(self, head: bytes) -> int | None:
        """Return where the samples of a WAV file begin; `None` where that is still to come."""
        position, form = 12, (0, 0, 0, 0, 0, 0)
        while len(head) >= position + 8:
            name, size = struct.unpack_from("<4sI", head, position)
            position += 8
            if name == b"data":
                self._form = self._usual_form(form)
                if 0 < size < _MIN_UNKNOWN_SIZE:
                    self._expected_bytes = size
                return position
            if name == b"fmt ":
                if len(head) < position + max(16, min(size, _SUBFORMAT_OFFSET + 2)):
                    break
                form = struct.unpack_from("<HHIIHH", head, position)
                if form[0] == _EXTENSIBLE and size >= _SUBFORMAT_OFFSET + 2:
                    subformat = struct.unpack_from("<H", head, position + _SUBFORMAT_OFFSET)
                    form = (*subformat, *form[1:])
            position += size + (size & 1)
        if len(head) > _MAX_HEADER_BYTES:
            raise self._not_pcm("a WAV file without an end to its header")
        return None

    def _usual_form(self, fields: tuple[int, ...]) -> SampleFormat:
        """Return the format of a WAV file's samples. Raises where it cannot be converted."""
        tag, channels, rate_hz, _, align, bits = fields
        form = SampleFormat(rate_hz, channels, bits, is_float=tag == _FLOAT)
        if tag not in {_PCM, _FLOAT} or not form.is_usual or align != form.frame_bytes:
            raise self._not_pcm(_wav_kind(fields))
        return form

    def _refuse_second_frame(self, head: bytes, name: str) -> None:
        frame_bytes = _FRAMES[name]
        if frame_bytes(head[frame_bytes(head) or 0 :]) is not None:
            raise self._not_pcm(name, head)

    def _not_pcm(self, what: str, head: bytes = b"") -> UpstreamIncomplete:
        detail = (
            f"The AI provider sent {what} where 24 kHz 16-bit mono PCM was asked for; check "
            f"{self._model_setting}."
        )
        if what in _DECODABLE and head:
            return CompressedSpeech(detail, what, head)
        return UpstreamIncomplete(detail)


def _converter_of(form: SampleFormat) -> "SampleConverter | None":
    if form == PLAIN:
        return None
    from app.services.audio.convert import SampleConverter  # NumPy, which few providers need

    return SampleConverter(form, SAMPLE_RATE_HZ)


def _compressed_frame(head: bytes) -> str | None:
    """Return what kind of frame seems to begin here."""
    for name, frame_bytes in _FRAMES.items():
        if frame_bytes(head) is not None:
            return name
    return None


def _wav_kind(form: tuple[int, ...]) -> str:
    tag, channels, rate_hz, _, _, bits = form
    if tag not in {_PCM, _FLOAT}:
        return "a WAV file whose samples are not PCM"
    return f"a WAV file of {rate_hz} Hz, {bits} bits and {channels} channels"
