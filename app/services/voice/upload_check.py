"""Decides whether an upload is worth a provider's time and the caller's money.

What comes out is what was judged: the samples themselves, as one kind of WAV, for the provider, the
embedded engine and the database. FFmpeg reads uploads in the worker process alone; samples that
begin with speech, which is what programs send, take a millisecond here.
"""

import logging
from itertools import islice

from anyio import to_thread

from app.core.errors import AppError
from app.core.security import Caller
from app.services.audio.errors import (
    AudioEmpty,
    AudioRefused,
    AudioTooLarge,
    AudioTooLong,
    AudioUnreadable,
    NoSpeech,
)
from app.services.ports import AudioFormat, Recording
from app.services.sandbox.fair_queue import JobCrashed, JobOutput
from app.services.sandbox.sandbox import Sandbox

logger = logging.getLogger(__name__)

MAX_BYTES = 25 * 1024 * 1024

_AT_ONCE_BYTES = 1 << 20
"""Far less than ten minutes of samples."""
_AT_ONCE_SECONDS = 10
"""Of samples at another rate: to convert them takes 3 ms."""
_BLOCKS_AT_ONCE = 2
"""One second."""
_RIFF = (b"RIFF", b"RF64")
_READ_RECORDING = "app.services.audio.job:read_recording"
WARM_UP = "app.services.audio.job:warm_up"
"""Named, not imported: the server has no part of FFmpeg."""
_COSTLY_CPU_SECONDS = 0.5
_LISTENED_SECONDS_A_CPU_SECOND = 150.0
"""How much is decoded and listened to in that time: what counts for a file that only costs."""
_LONGEST_DETAIL = 200

_REFUSALS: dict[str, type[AudioRefused]] = {
    refusal.code: refusal for refusal in (AudioEmpty, AudioTooLong, AudioUnreadable, NoSpeech)
}


class UploadCheck:
    """Reads uploads; one instance serves the whole process."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._is_loaded = False
        """True once the speech detector is in memory."""

    async def check(self, data: bytes, caller: Caller) -> Recording:
        """Return `data` as a recording with speech in it.

        Raises an `AudioRefused`, which says how much was listened to, or `TooManyJobs`,
        `WorkerBusy`, `WorkerUnavailable`. Cancelled, nothing goes on.
        """
        if not data:
            raise AudioEmpty("The upload is empty.")
        if len(data) > MAX_BYTES:
            raise AudioTooLarge("A recording may have 25 MB at most.")
        if len(data) <= _AT_ONCE_BYTES and data[:4] in _RIFF:
            if not self._is_loaded:
                await to_thread.run_sync(_load_detector, abandon_on_cancel=True)
                self._is_loaded = True
            if recording := _speech_at_start(data):
                return recording
        return await self._check_in_worker(data, caller)

    async def _check_in_worker(self, data: bytes, caller: Caller) -> Recording:
        key = str(caller.workspace_id), caller.actor
        try:
            output = await self._sandbox.run(_READ_RECORDING, {}, data, key)
        except JobCrashed as crash:
            logger.warning("an upload could not be read: %s", crash.reason)
            refusal = AudioUnreadable("This file cannot be read as sound.")
            refusal.listened_seconds = crash.cpu_seconds * _LISTENED_SECONDS_A_CPU_SECOND
            raise refusal from None
        return _recording(output)


def _recording(output: JobOutput) -> Recording:
    """Return what the worker made of an upload. Raises `AudioRefused`.

    The file may have taken its reader over: only what a recording can be is let through.
    """
    from app.services.audio.samples import duration_seconds, is_standard_wav

    wav = output.payload
    if is_standard_wav(wav):
        return Recording(wav, AudioFormat.WAV, duration_seconds(wav))
    refused = _REFUSALS.get(str(output.fields.get("code")), AudioUnreadable)
    refusal = refused(str(output.fields.get("detail"))[:_LONGEST_DETAIL])
    refusal.listened_seconds = float(output.fields.get("listened_seconds") or 0)
    if output.cpu_seconds > _COSTLY_CPU_SECONDS:
        by_cost = output.cpu_seconds * _LISTENED_SECONDS_A_CPU_SECOND
        refusal.listened_seconds = max(refusal.listened_seconds, by_cost)
    raise refusal


def _load_detector() -> None:
    from app.services.audio import pcm_wav, speech

    del pcm_wav
    speech.SpeechSearch()


def _speech_at_start(data: bytes) -> Recording | None:
    """Return a recording of plain samples that begins with speech, which takes a millisecond.

    A trip to the worker takes longer, and each slows the event loop down: of many uploads in one
    moment the last is heard in two thirds of the time.
    """
    from app.services.audio.pcm_wav import open_samples
    from app.services.audio.samples import (
        duration_seconds,
        is_standard_wav,
        to_pcm16,
        wav_header,
    )
    from app.services.audio.speech import SpeechSearch

    is_standard = is_standard_wav(data)
    try:
        sound = open_samples(data)
    except AppError:  # the worker says what is wrong
        return None
    if sound is None or not (is_standard or sound.measure(limit_seconds=0) <= _AT_ONCE_SECONDS):
        return None
    search = SpeechSearch()
    if not any(search.feed(block) for block in islice(sound.blocks(), _BLOCKS_AT_ONCE)):
        return None
    wav = data
    if not is_standard:
        pcm = b"".join(to_pcm16(block) for block in sound.blocks())
        wav = wav_header(len(pcm)) + pcm
    return Recording(wav, AudioFormat.WAV, duration_seconds(wav))
