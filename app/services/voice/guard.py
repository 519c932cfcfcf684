"""Decides whether an upload is worth a provider's time and the caller's money.

What the client says of its file (name, content type) is not asked. Costs a few milliseconds
for a voice message: the packets are counted, and decoding ends as soon as speech is certain.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from app.core.errors import AppError
from app.services.ports import AudioFormat, Recording
from app.services.voice.errors import (
    AudioEmpty,
    AudioTooLarge,
    AudioTooLong,
    AudioUnreadable,
    NoSpeech,
)
from app.services.voice.sniff import sniff

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_BYTES = 25 * 1024 * 1024
MAX_SECONDS = 600

_GRACE_SECONDS = 1
"""Encoders pad; a recorder that stops at ten minutes must pass."""

# Of any 8 chunks (256 ms) at least 4 must sound like speech: a short "no" has 6 or more,
# while noise, hum, tones and clicks stay below the threshold in every chunk.
_THRESHOLD = 0.5
_WINDOW_CHUNKS = 8
_SPEECH_CHUNKS = 4
_SILENCE = 1e-4
"""A muted microphone: -80 dB of full scale. No need to look closer."""

_AT_ONCE_BYTES = 1 << 20
"""Far less than ten minutes of samples."""
_BLOCKS_AT_ONCE = 2
"""One second."""

_SHORT_BYTES = 256 << 10
"""More than most voice messages have, where they are encoded."""

_short, _long = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
"""A thread each: who sends minutes holds up nobody who sends seconds."""
_is_loaded = False
"""True once the decoders and the speech detector are in memory."""


async def inspect(data: bytes) -> Recording:
    """Return `data` as a recording with speech in it.

    Raises `AudioEmpty`, `AudioTooLarge`, `AudioTooLong`, `AudioUnreadable` or `NoSpeech`.
    Works in a thread, but where speech is heard at once; cancelled, it returns at once and the
    thread's answer is dropped.
    """
    if recording := _heard_at_once(data):
        return recording
    limiter = _short if len(data) <= _SHORT_BYTES else _long
    verdict = await to_thread.run_sync(_judge, data, limiter=limiter, abandon_on_cancel=True)
    if isinstance(verdict, Recording):
        return verdict
    try:
        raise verdict
    finally:
        del verdict  # or the error and this frame, which has the upload, would hold each other


async def prepare() -> None:
    """Load the decoders and the speech detector, so that the first upload need not wait."""
    await to_thread.run_sync(_load, limiter=_short, abandon_on_cancel=True)


def _load() -> None:
    global _is_loaded  # noqa: PLW0603  # as modules are
    import av  # noqa: F401  # pyright: ignore[reportUnusedImport]  # for its side effect

    from app.services.voice import decode, silero

    del decode
    silero.SpeechDetector()
    _is_loaded = True


def _heard_at_once(data: bytes) -> Recording | None:
    """Return a recording of plain samples that begins with speech, which takes a millisecond.

    To wait for a thread takes longer, and each slows the event loop down: of many uploads in one
    moment the last is heard in two thirds of the time.
    """
    if not _is_loaded or not 0 < len(data) <= _AT_ONCE_BYTES:
        return None
    from app.services.voice.decode import open_samples

    try:
        sound = open_samples(data)
        if sound and _is_speech(islice(sound.blocks(), _BLOCKS_AT_ONCE)):
            return Recording(data, AudioFormat.WAV, sound.measure(limit_seconds=MAX_SECONDS))
    except AppError:  # the thread says what is wrong
        pass
    return None


def _judge(data: bytes) -> Recording | AppError:
    """Return what `_inspect` returns or raises.

    An error that leaves its thread by being raised is part of a cycle with the thread's
    future, and its frames would keep the upload in memory until the next garbage collection.
    """
    try:
        return _inspect(data)
    except AppError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def _inspect(data: bytes) -> Recording:
    if not data:
        raise AudioEmpty("The upload is empty.")
    if len(data) > MAX_BYTES:
        raise AudioTooLarge("A recording may have 25 MB at most.")
    sniffed = sniff(data)
    if sniffed is None:
        raise AudioUnreadable("Send WAV, MP3, MP4, WebM, Ogg or FLAC.")
    if not _is_loaded:
        _load()
    from app.services.voice.decode import open_sound

    limit_seconds = MAX_SECONDS + _GRACE_SECONDS
    with open_sound(data, sniffed) as sound:
        duration_seconds = sound.measure(limit_seconds=limit_seconds)
        if duration_seconds > limit_seconds:
            raise AudioTooLong("A recording may last 10 minutes at most.")
        if duration_seconds == 0:
            raise AudioEmpty("The recording holds no sound.")
        if not _is_speech(sound.blocks()):
            raise NoSpeech("No speech was found in the recording.")
    return Recording(data, sniffed.format, duration_seconds)


def _is_speech(sound: "Iterable[NDArray[np.float32]]") -> bool:
    import numpy as np

    from app.services.voice.silero import CHUNK_SAMPLES, SpeechDetector

    detector = SpeechDetector()
    recent: deque[bool] = deque(maxlen=_WINDOW_CHUNKS)
    for block in sound:
        if np.abs(block).max(initial=0) < _SILENCE:
            recent.clear()
            continue
        whole_chunks = np.pad(block, (0, -len(block) % CHUNK_SAMPLES))
        for probability in detector.probabilities(whole_chunks):
            recent.append(bool(probability >= _THRESHOLD))
            if sum(recent) >= _SPEECH_CHUNKS:
                return True
    return False
