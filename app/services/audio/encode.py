"""What the worker process does with samples: encode them as packets of Opus or AAC, in one go."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from av import AudioCodecContext

RATE_HZ = 24_000
FRAME_SAMPLES = {"opus": 480, "aac": 1024}
_ENCODERS = {"opus": ("libopus", "s16", 32_000), "aac": ("aac", "fltp", 64_000)}


def encode_samples(fields: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the packets of whole frames of 16-bit mono samples, and their `lengths`.

    The first `context` frames are encoded for what follows them: their own packets were had
    before. At the end of the stream (`is_last`) a packet more may come.
    """
    import av

    name = str(fields["codec"])
    context: Any = _open(name)  # PyAV's types are incomplete
    samples = np.frombuffer(payload, "<i2")
    if context.format.name != "s16":
        samples = samples.astype(np.float32) / np.float32(32768)
    size = FRAME_SAMPLES[name]
    packets: list[Any] = []
    for number, start in enumerate(range(0, len(samples), size)):
        block = samples[start : start + size].reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, context.format.name, "mono")
        frame.sample_rate, frame.pts = RATE_HZ, number * size
        packets += context.encode(frame)
    if fields["is_last"]:
        packets += context.encode(None)
    encoded = [bytes(packet) for packet in packets[fields["context"] :]]
    return {"lengths": list(map(len, encoded))}, b"".join(encoded)


def _open(name: str) -> "AudioCodecContext":
    import av

    codec, samples_format, bit_rate = _ENCODERS[name]
    context = cast("AudioCodecContext", av.CodecContext.create(codec, "w"))
    context.sample_rate, context.layout, context.format = RATE_HZ, "mono", samples_format
    context.bit_rate, context.thread_count = bit_rate, 1
    return context


def warm_up() -> None:
    """Encode a frame of silence with each: a job can import nothing."""
    for name, size in FRAME_SAMPLES.items():
        fields = {"codec": name, "context": 0, "is_last": True}
        encode_samples(fields, bytes(2 * size))
