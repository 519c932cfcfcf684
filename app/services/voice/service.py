"""A voice turn: hear, answer, speak; sound leaves while the answer is still written."""

from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from app.core.errors import AppError
from app.core.security import Caller
from app.services.ports import Recording, Speaker, Transcriber, Transcript
from app.services.turns import Clip, LiveTurn, Persona, TurnEngine, TurnOptions
from app.services.voice.errors import NoSpeech
from app.services.voice.guard import inspect
from app.services.voice.mp3 import Mp3Encoder
from app.services.voice.sentences import SentenceCutter
from app.services.voice.spoken import SpokenText

_SILENCE_SECONDS = 0.2
"""What is heard of an answer that has nothing to be said aloud."""


@dataclass(slots=True)
class VoiceTurn:
    """Fulfils the engine's `VoiceStages` for one turn; collects the MP3 for whoever listens."""

    recording: Recording
    transcriber: Transcriber
    speaker: Speaker
    default_voice: str
    with_clips: bool = False
    transcript: Transcript | None = None
    error: AppError | None = None
    is_over: bool = False
    spoken_characters: int = 0
    _mp3: list[bytes] = field(default_factory=list[bytes])
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def recording_seconds(self) -> float:
        """How long the user spoke."""
        return self.recording.duration_seconds

    async def hear(self, persona: Persona) -> Transcript:
        """Fulfil `VoiceStages.hear`. Raises `ProviderError`, or `NoSpeech` without words."""
        transcript = await self.transcriber.transcribe(self.recording, language=persona.language)
        if not transcript.text.strip():
            raise NoSpeech("No words were heard in the recording.")
        self.transcript = Transcript(transcript.text.strip(), transcript.language)
        return self.transcript

    async def speak(
        self, persona: Persona, deltas: AsyncIterator[str], on_clip: Callable[[Clip], None]
    ) -> int:
        """Fulfil `VoiceStages.speak`: one sentence after the other, into one MP3 stream."""
        encoder = Mp3Encoder(self.speaker.sample_rate_hz)
        voice = persona.voice or self.default_voice
        characters = index = start_ms = 0
        async for sentence in self._sentences(persona, deltas):
            characters += len(sentence)
            self.spoken_characters = characters
            spoken = bytearray()
            async with aclosing(self.speaker.speak(sentence, voice=voice)) as sound:
                async for pcm in sound:
                    self._emit(encoder.encode(pcm))
                    if self.with_clips:
                        spoken += pcm
            if self.with_clips:
                on_clip(self._clip(index, sentence, start_ms, bytes(spoken)))
                start_ms += self._milliseconds(spoken)
                index += 1
        if not characters:
            samples = round(self.speaker.sample_rate_hz * _SILENCE_SECONDS)
            self._emit(encoder.encode(bytes(2 * samples)))
        self._emit(encoder.finish())
        return characters

    def ended(self, error: AppError | None) -> None:
        """Fulfil `VoiceStages.ended`."""
        self.error = error
        self.is_over = True
        self._wake()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """Yield the MP3 from its beginning as it comes; the last chunk once all is stored.

        Raises the error that the turn ended with.
        """
        sent = 0
        while True:
            # The last chunk says that the answer is whole, so it waits for the turn's end.
            ready = len(self._mp3) if self.is_over else max(sent, len(self._mp3) - 1)
            while sent < ready:
                sent += 1
                yield self._mp3[sent - 1]
            if self.is_over:
                if self.error:
                    raise self.error.with_traceback(None)
                return
            await self._changed.wait()

    async def _sentences(self, persona: Persona, deltas: AsyncIterator[str]) -> AsyncGenerator[str]:
        language = persona.language or (self.transcript and self.transcript.language)
        cutter = SentenceCutter(language, self.speaker.max_characters)
        spoken = SpokenText()
        async for delta in deltas:
            for piece in cutter.feed(delta):
                if words := spoken.clean(piece):
                    yield words
        for piece in cutter.finish():
            if words := spoken.clean(piece):
                yield words

    def _clip(self, index: int, text: str, start_ms: int, pcm: bytes) -> Clip:
        encoder = Mp3Encoder(self.speaker.sample_rate_hz)
        mp3 = encoder.encode(pcm) + encoder.finish()
        return Clip(index, text, start_ms, self._milliseconds(pcm), b64encode(mp3).decode())

    def _milliseconds(self, pcm: bytes | bytearray) -> int:
        return round(len(pcm) / 2 / self.speaker.sample_rate_hz * 1000)

    def _emit(self, mp3: bytes) -> None:
        if mp3:
            self._mp3.append(mp3)
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class VoiceAnswer:
    """The spoken answer of one turn, for one listener."""

    def __init__(
        self, turn: LiveTurn, voice: VoiceTurn, chunks: AsyncGenerator[bytes] | None = None
    ) -> None:
        self.turn = turn
        self._voice = voice
        self._chunks = chunks or voice.chunks()
        self._first = b""

    @property
    def turn_id(self) -> UUID:
        """The turn."""
        return self.turn.record.id

    @property
    def session_id(self) -> UUID:
        """The session of the turn."""
        return self.turn.record.session_id

    @property
    def transcript(self) -> Transcript:
        """What was understood; there once `first_sound` has returned."""
        return self._voice.transcript or Transcript("")

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds from acceptance, by name."""
        return self.turn.progress.timings

    async def first_sound(self) -> None:
        """Wait until there is something to hear. Raises the error that the turn ended with."""
        try:
            self._first = await anext(self._chunks)
        except AppError as error:
            error.facts["turn_id"] = str(self.turn_id)
            raise
        self.turn.mark("first_audio_ms")

    async def mp3(self) -> AsyncGenerator[bytes]:
        """Yield the MP3, one continuous stream; raises in the middle if the turn fails there."""
        async with aclosing(self._chunks):
            yield self._first
            async for chunk in self._chunks:
                yield chunk


class VoiceService:
    """Runs voice turns on the turn engine."""

    def __init__(
        self,
        turns: TurnEngine,
        transcriber: Transcriber,
        speaker: Speaker,
        *,
        default_voice: str,
    ) -> None:
        self._turns = turns
        self._transcriber = transcriber
        self._speaker = speaker
        self._default_voice = default_voice

    async def reply_to_recording(
        self,
        caller: Caller,
        session_id: UUID,
        data: bytes,
        options: TurnOptions,
        *,
        with_clips: bool = False,
    ) -> VoiceAnswer:
        """Accept a recording; the answer follows in what is returned.

        `with_clips` adds an event with the MP3 of each sentence, for those who follow events.

        Nothing is stored and no provider asked where the recording is refused. Raises what
        `inspect` and `TurnEngine.start` raise.
        """
        recording = await inspect(data)
        voice = VoiceTurn(
            recording, self._transcriber, self._speaker, self._default_voice, with_clips
        )
        turn = await self._turns.start(caller, session_id, "", voice, options)
        if turn.is_replayed:
            if isinstance(turn.voice, VoiceTurn):  # still running: listen to it, too
                return VoiceAnswer(turn, turn.voice)
            return VoiceAnswer(turn, voice, self._say_again(turn, voice))
        return VoiceAnswer(turn, voice)

    async def _say_again(self, turn: LiveTurn, voice: VoiceTurn) -> AsyncGenerator[bytes]:
        """Speak the answer of a turn that is settled, or that another server runs.

        Raises the error that the turn ended with.
        """
        reply = await self._turns.result(turn)
        voice.transcript = Transcript(await self._turns.question(turn))

        async def words() -> AsyncGenerator[str]:
            yield reply.content

        await voice.speak(turn.record.persona, words(), lambda _clip: None)
        voice.ended(None)
        async with aclosing(voice.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk
