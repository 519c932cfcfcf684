"""What the worker process does with packets of compressed sound: decode them, in one go."""

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, cast

from app.services.audio.decode import frames_of, mono
from app.services.audio.pcm_wav import refuse_odd_sound
from app.services.audio.samples import to_pcm16

if TYPE_CHECKING:
    from av import AudioCodecContext

_CODECS = frozenset(("mp3float", "opus", "vorbis"))


def decode_packets(fields: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the sound of packets as 16-bit mono samples, and their `rate_hz`, 0 without any.

    `payload` is the codec's head, of `head_bytes`, and the packets, of `lengths`. The first
    `context` of them are decoded for what follows them: their own sound was had before. Packets
    that are broken have none.
    """
    context = _open(fields["codec"], payload[: fields["head_bytes"]])
    ends = [*accumulate(fields["lengths"], initial=fields["head_bytes"])]
    packets = [payload[start:end] for start, end in pairwise(ends)]
    pcm, rate_hz = bytearray(), 0
    for index, packet in enumerate(packets):
        frames = frames_of(context, packet)
        if index < fields["context"]:
            continue
        for frame in frames:
            refuse_odd_sound(frame.sample_rate, frame.layout.nb_channels)
            if rate_hz in {0, frame.sample_rate}:  # what changes on the way is left out
                rate_hz = frame.sample_rate
                pcm += to_pcm16(mono(frame))
    return {"rate_hz": rate_hz}, bytes(pcm)


def _open(name: str, head: bytes) -> "AudioCodecContext":
    import av

    if name not in _CODECS:
        raise ValueError("no such codec")
    context = cast("AudioCodecContext", av.CodecContext.create(name, "r"))
    if head:
        context.extradata = head
    context.thread_count = 1
    return context


def warm_up() -> None:
    """Decode a frame of silence: a job can import nothing."""
    frame = b"\xff\xf3\x84\xc4" + bytes(188)
    fields = {"codec": "mp3float", "head_bytes": 0, "lengths": [len(frame)], "context": 0}
    decode_packets(fields, frame)
