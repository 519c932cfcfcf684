"""Transcripts and speech without a turn: the guards, limits and usage of a turn, and no content."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING
from uuid import UUID

from app.core.errors import AppError, ErrorKind
from app.core.security import Caller
from app.core.value_objects import value_object
from app.services.audio.errors import AudioRefused, NoSpeech
from app.services.ports import (
    OnWords,
    ProviderError,
    ProviderTimeout,
    Transcript,
    UpstreamIncomplete,
)
from app.services.sandbox.fair_queue import JobCrashed
from app.services.sandbox.sandbox import Sandbox
from app.services.transcript_times import NO_TIMES, TimeUnit
from app.services.turns import TurnEngine
from app.services.turns.errors import InternalError, ServerDraining
from app.services.usage.audio_usage import AudioMeter, AudioUsage
from app.services.voice.sentences import SentenceCutter
from app.services.voice.speech_formats import SpeechFormat
from app.services.voice.speech_order import AudioSink, Utterance, speak_in_order
from app.services.voice.turn import VoiceTurns
from app.services.voice.upload_check import UploadCheck

if TYPE_CHECKING:
    from app.services.voice.encoders import SpeechEncoder

OnSound = Callable[[bytes], Awaitable[None]]
_READ_CHARACTERS = 500
"""Of a text at once, so that its beginning is spoken before its end is read."""
_BILLED_FAILURES = (ProviderTimeout, UpstreamIncomplete)
"""The provider has probably worked."""


@value_object(frozen=True, slots=True)
class TranscriptRequest:
    """What is asked of a transcript."""

    language: str | None = None
    """ISO 639-1; `None` where it must be recognized."""
    prompt: str | None = None
    times: frozenset[TimeUnit] = NO_TIMES
    agent_id: UUID | None = None
    """Whom the usage is reported for."""


@value_object(frozen=True, slots=True)
class SpeechRequest:
    """A text to speak."""

    text: str
    format: SpeechFormat
    voice: str | None = None
    """`None` for the server's."""
    speed: float = 1
    language: str | None = None
    """Of the text, for its sentences."""
    agent_id: UUID | None = None
    """Whom the usage is reported for."""


@value_object(frozen=True, slots=True)
class MadeTranscript:
    """A transcript, and how long the recording is."""

    transcript: Transcript
    duration_seconds: float


class AudioRequests:
    """Transcribes and speaks for one request at a time; one instance serves the process."""

    def __init__(
        self,
        turns: TurnEngine,
        voices: VoiceTurns,
        uploads: UploadCheck,
        meter: AudioMeter,
        sandbox: Sandbox,
    ) -> None:
        self._turns = turns
        self._voices = voices
        self._uploads = uploads
        self._meter = meter
        self._sandbox = sandbox

    @property
    def time_units(self) -> frozenset[TimeUnit]:
        """What transcripts can have the times of."""
        return self._voices.transcriber.time_units

    @property
    def voice_names(self) -> frozenset[str] | None:
        """The voices that there are; `None` where nobody knows them."""
        return self._voices.speaker.voices

    @property
    def has_speeds(self) -> bool:
        """True if speech can have another speed than 1."""
        return self._voices.speaker.has_speeds

    async def transcribe(
        self,
        caller: Caller,
        data: bytes,
        request: TranscriptRequest,
        on_words: OnWords | None = None,
    ) -> MadeTranscript:
        """Transcribe an upload; an empty text where nobody speaks in it.

        The seconds that were decoded in vain count against the day's minutes. Raises what
        `UploadCheck.check` and `AudioMeter.charging` do, `ProviderError` and `ServerDraining`.
        """
        await self._turns.uploads.admit_anywhere(caller)
        try:
            recording = await self._uploads.check(data, caller)
        except AudioRefused as refusal:
            await self._turns.uploads.charge(caller, refusal.listened_seconds)
            if not isinstance(refusal, NoSpeech):
                raise
            return MadeTranscript(Transcript(""), refusal.listened_seconds)
        seconds = recording.duration_seconds
        try:
            async with self._meter.charging(
                caller, AudioUsage(speech_in_seconds=seconds), request.agent_id
            ) as used:
                used.speech_in_seconds = seconds
                try:
                    transcript = await self._voices.transcriber.transcribe(
                        recording,
                        language=request.language,
                        prompt=request.prompt,
                        times=request.times,
                        on_words=on_words,
                    )
                except ProviderError as error:
                    if not isinstance(error, _BILLED_FAILURES):
                        used.speech_in_seconds = 0
                    raise
        except AppError as error:
            if error.kind is ErrorKind.TOO_MANY:  # refused after it was listened to
                await self._turns.uploads.charge(caller, seconds)
            raise
        return MadeTranscript(transcript, seconds)

    async def speak(self, caller: Caller, request: SpeechRequest, on_sound: OnSound) -> float:
        """Speak a text, sentence by sentence; return how many seconds that took to say.

        `on_sound` takes the encoded speech as it comes. Cancelled, the provider stops. Raises what
        `AudioMeter.charging` does, `ProviderError`, `ServerDraining`, and of formats that the
        worker encodes `TooManyJobs`, `WorkerBusy` and `WorkerUnavailable`.
        """
        from app.services.voice.encoders import make_encoder  # needs NumPy

        if self._turns.is_draining:
            raise ServerDraining("This server is shutting down; try again.", retry_after_seconds=1)
        speaker = self._voices.speaker
        rate_hz = speaker.sample_rate_hz
        key = str(caller.workspace_id), caller.actor
        encoder = make_encoder(request.format, rate_hz, self._sandbox, key)
        pcm_bytes = 0

        async def encode(pcm: bytes) -> None:
            nonlocal pcm_bytes
            pcm_bytes += len(pcm)
            if piece := await _encoded(encoder, pcm):
                await on_sound(piece)

        async def finish(_utterance: Utterance) -> None:
            pass

        most = AudioUsage(speech_out_characters=len(request.text))
        async with self._meter.charging(caller, most, request.agent_id) as used:
            await speak_in_order(
                speaker,
                request.voice or self._voices.default_voice,
                self._sentences(request, used),
                AudioSink(lambda _: None, encode, finish),
                speed=request.speed,
            )
        if rest := await _encoded(encoder, None):
            await on_sound(rest)
        return pcm_bytes / 2 / rate_hz

    async def _sentences(
        self, request: SpeechRequest, used: AudioUsage
    ) -> AsyncGenerator[Utterance]:
        """Yield the sentences of a text, and count them."""
        cutter = SentenceCutter(request.language, self._voices.speaker.max_characters)
        text = request.text
        for start in count(step=_READ_CHARACTERS):
            piece = text[start : start + _READ_CHARACTERS]
            for sentence in cutter.feed(piece) if piece else cutter.finish():
                used.speech_out_characters += len(sentence)
                yield Utterance(sentence.strip(), 0, 0)
            if not piece:
                return


async def _encoded(encoder: "SpeechEncoder", pcm: bytes | None) -> bytes:
    """Encode PCM, or for `None` finish. Raises `InternalError` where that fails."""
    try:
        return await (encoder.finish() if pcm is None else encoder.encode(pcm))
    except JobCrashed as crash:
        raise InternalError("The speech could not be encoded.") from crash
