"""Speech that comes as MP3 or Ogg: cut into packets here, decoded in a worker process.

A job decodes what has come since the job before it, after some packets of that one: a decoder needs
them to be where it was.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Protocol

from app.core.errors import AppError
from app.services.openai_service.pcm import CompressedSpeech, PcmReader
from app.services.openai_service.sound_signatures import mpeg_frame_bytes
from app.services.ports import UpstreamIncomplete
from app.services.provider_http.client import ProviderResponse
from app.services.sandbox.fair_queue import JobCrashed
from app.services.sandbox.sandbox import Sandbox

_DECODE = "app.services.audio.packets:decode_packets"
_CALLER = ("providers", "speech")
_FIRST_BYTES, _MOST_BYTES = 2048, 65_536
"""Of a job: what is said first is decoded soon, and what follows in longer pieces."""
_CONTEXT_PACKETS = {"mp3float": 10, "opus": 8, "vorbis": 2}
"""How far a decoder looks back: MP3's bit reservoir, 80 ms of Opus, one block of Vorbis."""
_MOST_WASTE_BYTES = 1 << 20
"""Of tags and covers, and of what is no frame."""
_MOST_PACKET_BYTES = 65_536
_MOST_HEAD_BYTES = 1 << 20
_PAGE_BYTES, _WHOLE_SEGMENT = 27, 255
_ID3_BYTES = 10
_OGG_CODECS = {b"OpusHead": "opus", b"\x01vorbis": "vorbis"}
_INFO_MARKS = (b"Xing", b"Info", b"VBRI")


class PacketReader(Protocol):
    """Cuts one kind of stream into packets."""

    codec: str
    """The decoder's name; empty until the stream has said what it is."""
    head: bytes
    """What the decoder needs before the packets."""

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes; return the packets that they complete.

        Raises `ValueError` where the stream is not of its kind.
        """
        ...


class SpeechDecoder:
    """Makes samples of compressed speech while it comes; one instance serves the process."""

    WARM_UP: ClassVar = "app.services.audio.packets:warm_up"

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def decode(
        self, sent: CompressedSpeech, answer: ProviderResponse, pcm: PcmReader
    ) -> AsyncGenerator[bytes]:
        """Yield the samples of what was `sent` and of the rest of the answer, as `pcm` counts them.

        Raises `UpstreamIncomplete`, `sent` itself where it cannot be decoded.
        """
        reader: PacketReader = Mp3Packets() if sent.container == "MP3" else OggPackets()
        context: Sequence[bytes] = ()
        packets, wanted_bytes, at_end = _packets(reader, sent.head, sent), _FIRST_BYTES, False
        while not at_end:
            while not at_end and sum(map(len, packets)) < wanted_bytes:
                piece = await answer.read()
                at_end = not piece
                packets += _packets(reader, piece, sent)
            if not packets:
                break
            rate_hz, samples = await self._run(reader, context, packets, sent)
            if rate_hz and (converted := pcm.feed_decoded(samples, rate_hz)):
                yield converted
            context = [*context, *packets][-_CONTEXT_PACKETS[reader.codec] :]
            packets, wanted_bytes = [], min(2 * wanted_bytes, _MOST_BYTES)
        if rest := pcm.end():
            yield rest

    async def _run(
        self,
        reader: PacketReader,
        context: Sequence[bytes],
        packets: Sequence[bytes],
        sent: CompressedSpeech,
    ) -> tuple[int, bytes]:
        """Decode `packets`; return the samples' rate, 0 where there are none, and the samples."""
        fields = {
            "codec": reader.codec,
            "head_bytes": len(reader.head),
            "lengths": [len(packet) for packet in (*context, *packets)],
            "context": len(context),
        }
        payload = b"".join((reader.head, *context, *packets))
        try:
            output = await self._sandbox.run(_DECODE, fields, payload, _CALLER)
        except JobCrashed:
            raise sent from None
        except AppError as error:
            raise UpstreamIncomplete("The AI provider's speech cannot be decoded now.") from error
        rate_hz = int(output.fields.get("rate_hz") or 0)
        return (rate_hz if 4_000 <= rate_hz <= 192_000 else 0), output.payload  # noqa: PLR2004


def _packets(reader: PacketReader, piece: bytes, sent: CompressedSpeech) -> list[bytes]:
    try:
        return reader.feed(piece)
    except ValueError:
        raise sent from None


class Mp3Packets:
    """Fulfils `PacketReader` for Layer III; tags and an encoder's own frame are left out."""

    codec = "mp3float"
    head = b""

    def __init__(self) -> None:
        self._data = bytearray()
        self._tag_bytes: int | None = None
        """What is left of the tag at the beginning; `None` until that was looked for."""
        self._wasted_bytes = 0
        self._has_begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Fulfil `PacketReader.feed`."""
        self._data += piece
        if not self._is_past_tag():
            return []
        frames: list[bytes] = []
        while len(self._data) >= 4:  # noqa: PLR2004  # bytes of a frame's header
            length = mpeg_frame_bytes(bytes(self._data[:4]))
            if length is None:
                self._skip_to_sync()
                continue
            if len(self._data) < length:
                break
            frame = bytes(self._data[:length])
            del self._data[:length]
            if self._has_begun or not any(mark in frame[:64] for mark in _INFO_MARKS):
                frames.append(frame)
            self._has_begun = True
        return frames

    def _is_past_tag(self) -> bool:
        """Leave out an ID3 tag (id3.org, ID3v2.4, section 3.1); return whether that is done."""
        if self._tag_bytes is None:
            if len(self._data) < _ID3_BYTES:
                return False
            self._tag_bytes = 0
            if self._data.startswith(b"ID3"):
                size = 0
                for byte in self._data[6:10]:
                    size = size << 7 | byte & 0x7F
                self._tag_bytes = _ID3_BYTES + size + (_ID3_BYTES if self._data[5] & 0x10 else 0)
                self._waste(self._tag_bytes)
        left_out = min(self._tag_bytes, len(self._data))
        del self._data[:left_out]
        self._tag_bytes -= left_out
        return not self._tag_bytes

    def _skip_to_sync(self) -> None:
        place = self._data.find(b"\xff", 1)
        skipped = place if place > 0 else len(self._data)
        self._waste(skipped)
        del self._data[:skipped]

    def _waste(self, count: int) -> None:
        self._wasted_bytes += count
        if self._wasted_bytes > _MOST_WASTE_BYTES:
            raise ValueError("too much that is no sound")


class OggPackets:
    """Fulfils `PacketReader` for Opus and Vorbis in Ogg (RFC 3533), of several the first."""

    def __init__(self) -> None:
        self.codec = ""
        self.head = b""
        self._data = bytearray()
        self._serial: bytes | None = None
        self._packet = bytearray()
        self._heads: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Fulfil `PacketReader.feed`."""
        self._data += piece
        packets: list[bytes] = []
        while len(self._data) >= _PAGE_BYTES:
            if not self._data.startswith(b"OggS"):
                raise ValueError("no page where one must begin")
            body = _PAGE_BYTES + self._data[26]
            lacing = bytes(self._data[_PAGE_BYTES:body])
            end = body + sum(lacing)
            if len(lacing) < self._data[26] or len(self._data) < end:
                break
            page = bytes(self._data[:end])
            del self._data[:end]
            packets += self._add_page(page, lacing, body)
        return packets

    def _add_page(self, page: bytes, lacing: bytes, start: int) -> list[bytes]:
        serial, is_first, is_last = page[14:18], page[5] & 2, page[5] & 4
        if is_first and self._serial is None:
            self._serial, self._heads = serial, []
        if serial != self._serial:
            return []
        packets: list[bytes] = []
        for length in lacing:
            self._packet += page[start : start + length]
            start += length
            if len(self._packet) > (_MOST_PACKET_BYTES if self.head else _MOST_HEAD_BYTES):
                raise ValueError("a packet is too long")
            if length < _WHOLE_SEGMENT:
                packets += self._add_packet(bytes(self._packet))
                self._packet.clear()
        if is_last:
            self._serial = None  # another stream may follow
        return packets

    def _add_packet(self, packet: bytes) -> list[bytes]:
        count = len(self._heads)
        if not count:
            self.codec = self._codec_of(packet)
        if count < (2 if self.codec == "opus" else 3):
            self._heads.append(packet)
            if self.codec == "opus":
                self.head = self._heads[0]
            elif count == 2:  # noqa: PLR2004  # the last of three
                self.head = _xiph_laced(self._heads)
            return []
        return [packet] if packet else []

    def _codec_of(self, packet: bytes) -> str:
        codec = next((name for mark, name in _OGG_CODECS.items() if packet.startswith(mark)), "")
        if not codec or self.codec not in {"", codec}:
            raise ValueError("neither Opus nor Vorbis")
        return codec


def _xiph_laced(heads: Sequence[bytes]) -> bytes:
    """Return the three heads of Vorbis as FFmpeg takes them: their lengths, then they."""
    laced = bytes((len(heads) - 1,))
    for head in heads[:-1]:
        laced += b"\xff" * (len(head) // 255) + bytes((len(head) % 255,))
    return laced + b"".join(heads)
