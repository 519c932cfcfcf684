"""What the worker process does with an upload: read it, judge it, and bring it to one format."""

import struct
from typing import Any

from app.services.audio.decode import open_sound
from app.services.audio.errors import (
    AudioEmpty,
    AudioRefused,
    AudioTooLong,
    AudioUnreadable,
    NoSpeech,
)
from app.services.audio.samples import HEADER_BYTES, duration_seconds, to_pcm16, wav_header
from app.services.audio.sniff import sniff
from app.services.audio.speech import SpeechSearch

MAX_SECONDS = 600
GRACE_SECONDS = 1
"""Encoders pad; a recorder that stops at ten minutes must pass."""


def read_recording(_fields: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytearray]:
    """Return an upload as a standard WAV file, or under `code` and `detail` why it is refused.

    `listened_seconds` says how much was decoded. What the client says of its file (name, content
    type) is not asked.
    """
    wav = bytearray(HEADER_BYTES)
    try:
        _read(data, wav)
    except AudioRefused as refusal:
        refused = {"code": refusal.code, "detail": refusal.detail}
        return refused | {"listened_seconds": duration_seconds(wav)}, bytearray()
    wav[:HEADER_BYTES] = wav_header(len(wav) - HEADER_BYTES)
    return {"listened_seconds": duration_seconds(wav)}, wav


def _read(data: bytes, wav: bytearray) -> None:
    """Add the samples of `data` to `wav`. Raises `AudioRefused`."""
    sniffed = sniff(data)
    if sniffed is None:
        raise AudioUnreadable("Send WAV, MP3, MP4, WebM, Ogg or FLAC.")
    limit_seconds = MAX_SECONDS + GRACE_SECONDS
    with open_sound(data, sniffed) as sound:
        seconds = sound.measure(limit_seconds=limit_seconds)
        if seconds > limit_seconds:
            raise AudioTooLong("A recording may last 10 minutes at most.")
        if seconds == 0:
            raise AudioEmpty("The recording holds no sound.")
        search = SpeechSearch()
        for block in sound.blocks():
            search.feed(block)
            wav += to_pcm16(block)
            # A packet may decode to more than it said.
            if duration_seconds(wav) > limit_seconds + GRACE_SECONDS:
                raise AudioTooLong("A recording may last 10 minutes at most.")
    if not search.has_found:
        raise NoSpeech("No speech was found in the recording.")


def warm_up() -> None:
    """Read a second of noise: what a job imports and builds once is there, for it opens no file."""
    samples = bytes(range(256)) * 32
    head = struct.pack("<HHIIHH", 1, 1, 8000, 8000, 1, 8)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head
    body += b"data" + struct.pack("<I", len(samples)) + samples
    read_recording({}, b"RIFF" + struct.pack("<I", len(body)) + body)
