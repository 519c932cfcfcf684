"""The stages of one voice turn: transcription, and speech synthesis of the growing answer."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from app.core.errors import AppError
from app.services.audio.errors import NoSpeech
from app.services.ports import ProviderError, Recording, Speaker, Transcriber, Transcript
from app.services.turns import AudioClip, Persona, SpokenPiece
from app.services.turns.context.heard_text import whole_words
from app.services.voice.early_transcription import EarlyTranscription, short_language
from app.services.voice.mp3 import Mp3Encoder, encode
from app.services.voice.sentences import SentenceCutter
from app.services.voice.speech_order import AudioSink, Utterance, speak_in_order
from app.services.voice.speech_text import SpeechTextFilter

_SILENCE_SECONDS = 0.2
"""Audio of an answer without any text to synthesize."""
_SECONDS_PER_CHARACTER = 0.065
"""Estimated duration of speech, before the first sentence is finished."""
_FIRST_BLOCK_BYTES = 9600
"""0.2 s at 24 kHz: encoded separately at the beginning of an answer, for a low latency."""


class LiveSink(Protocol):
    """Somebody who listens to an answer while it is synthesized, before it is encoded."""

    def begin(self, utterance: Utterance) -> None:
        """Take note of the sentence whose sound follows."""
        ...

    async def sound(self, pcm: bytes, sample_rate_hz: int) -> None:
        """Take signed 16-bit little-endian mono PCM; waits while the listener has enough."""
        ...


@dataclass(slots=True)
class VoiceTurn:
    """Implements the engine's `VoiceStages`; collects the MP3 for its subscribers."""

    recording: Recording | None
    transcriber: Transcriber
    speaker: Speaker
    default_voice: str
    has_clips: bool = False
    speaks: bool = True
    sink: LiveSink | None = None
    early: EarlyTranscription | None = None
    """The transcription of the recording, where that has begun before the turn."""
    heard_seconds: float = 0.0
    """Begins with what was sent to the transcriber in vain before the turn."""
    transcript: Transcript | None = None
    spoken_characters: int = 0
    mp3: list[bytes] = field(default_factory=list[bytes])
    """The MP3 stream so far, in chunks."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set, and replaced, when `mp3` or `is_over` changes."""
    error: AppError | None = None
    is_over: bool = False
    _finished: list[SpokenPiece] = field(default_factory=list[SpokenPiece])
    _written_characters: int = 0
    _current: Utterance | None = None
    _current_pcm: bytearray = field(default_factory=bytearray)
    _current_samples: int = 0
    _current_mp3: bytearray = field(default_factory=bytearray)

    async def transcribe(self, persona: Persona, on_words: Callable[[str], None]) -> Transcript:
        """Implement `VoiceStages.transcribe`. Raises `ProviderError`; `NoSpeech` for empty text."""
        if self.recording is None:
            raise RuntimeError("a written message has no recording")
        transcript = await self._early_transcript(persona.language)
        if transcript is None:
            self.heard_seconds += self.recording.duration_seconds
            try:
                transcript = await self.transcriber.transcribe(
                    self.recording, language=short_language(persona.language), on_words=on_words
                )
            except ProviderError:  # is not billed
                self.heard_seconds -= self.recording.duration_seconds
                raise
        if not transcript.text.strip():
            raise NoSpeech("No words were recognized in the recording: record it again.")
        self.transcript = Transcript(transcript.text.strip(), transcript.language)
        return self.transcript

    async def _early_transcript(self, language: str | None) -> Transcript | None:
        early, self.early = self.early, None
        if early is None:
            return None
        try:
            return await early.result(language)
        finally:
            self.heard_seconds += early.seconds

    async def speak(
        self,
        persona: Persona,
        deltas: AsyncIterator[str],
        on_clip: Callable[[AudioClip], None],
        mark: Callable[[str], None],
    ) -> None:
        """Implement `VoiceStages.speak`: concurrent syntheses, encoded to one MP3 stream."""
        encoder = Mp3Encoder(self.speaker.sample_rate_hz)
        encoder.start()

        def begin(utterance: Utterance) -> None:
            self._current = utterance
            if self.sink:
                self.sink.begin(utterance)

        async def on_sound(pcm: bytes) -> None:
            self._current_samples += len(pcm) // 2
            await self._hand_over(pcm, mark)
            if self.has_clips:
                self._current_pcm += pcm
            # Send the first frames before the rest is encoded.
            for block in (
                (pcm[:_FIRST_BLOCK_BYTES], pcm[_FIRST_BLOCK_BYTES:]) if not self.mp3 else (pcm,)
            ):
                if mp3 := await encode(encoder, block):
                    mark("first_audio_ms")
                    self._emit(mp3)
                    await asyncio.sleep(0)  # lets other turns send their frames

        async def finish(utterance: Utterance) -> None:
            pcm = bytes(self._current_pcm)
            piece = self._finish_piece(utterance)
            if self.has_clips:
                whole = Mp3Encoder(self.speaker.sample_rate_hz)
                sound = await encode(whole, pcm) + whole.finish()
                mp3 = b64encode(sound).decode()
                clip = AudioClip(piece.index, piece.text, piece.start_ms, piece.duration_ms, mp3)
                on_clip(clip)

        voice = persona.voice or self.default_voice
        utterances = self._utterances(persona, deltas, mark)
        sink = AudioSink(begin, on_sound, finish)
        await speak_in_order(self.speaker, voice, utterances, sink)
        if not self._finished:
            silence = Utterance("", 0, 0)
            begin(silence)
            await on_sound(bytes(2 * round(self.speaker.sample_rate_hz * _SILENCE_SECONDS)))
            self._finish_piece(silence)
        self._end_stream(encoder.finish())

    async def _hand_over(self, pcm: bytes, mark: Callable[[str], None]) -> None:
        if self.sink:
            mark("first_audio_ms")
            await self.sink.sound(pcm, self.speaker.sample_rate_hz)

    def finished_pieces(self) -> Sequence[SpokenPiece]:
        """Implement `VoiceStages.finished_pieces`."""
        return self._finished

    def pieces(self) -> Sequence[SpokenPiece]:
        """Implement `VoiceStages.pieces`."""
        current = self._current
        if current is None or not self._current_samples:
            return self._finished
        spoken_end = whole_words(current.text, self._current_share(current))
        share = spoken_end / max(1, len(current.text))
        written = round((current.content_end - current.content_start) * share)
        broken_off = Utterance(
            current.text[:spoken_end], current.content_start, current.content_start + written
        )
        return [*self._finished, self._piece(broken_off)]

    def on_settled(self, error: AppError | None) -> None:
        """Implement `VoiceStages.on_settled`."""
        self.error = error
        self.is_over = True
        self._wake()

    async def _utterances(
        self, persona: Persona, deltas: AsyncIterator[str], mark: Callable[[str], None]
    ) -> AsyncGenerator[Utterance]:
        language = persona.language or (self.transcript and self.transcript.language)
        cutter = SentenceCutter(language, self.speaker.max_characters)
        text_filter = SpeechTextFilter()
        start, written = 0, ""

        def utterances_of(pieces: list[str]) -> list[Utterance]:
            nonlocal start, written
            utterances: list[Utterance] = []
            for piece in pieces:
                self._written_characters += len(piece)
                written += piece
                if words := text_filter.clean(piece):
                    # Text that is not synthesized, such as code, belongs to the next utterance.
                    end = self._written_characters
                    utterances.append(Utterance(words, start, end, written))
                    start, written = end, ""
            return utterances

        async for delta in deltas:
            for utterance in utterances_of(cutter.feed(delta)):
                yield self._counted(utterance, mark)
        for utterance in utterances_of(cutter.finish()):
            yield self._counted(utterance, mark)

    def _counted(self, utterance: Utterance, mark: Callable[[str], None]) -> Utterance:
        mark("first_sentence_ms")
        self.spoken_characters += len(utterance.text)
        return utterance

    def _finish_piece(self, utterance: Utterance) -> SpokenPiece:
        piece = self._piece(utterance)
        self._finished.append(piece)
        self._current = None
        self._current_samples = 0
        self._current_pcm.clear()
        self._current_mp3.clear()
        return piece

    def _piece(self, utterance: Utterance) -> SpokenPiece:
        return SpokenPiece(
            index=len(self._finished),
            text=utterance.text,
            content_start=utterance.content_start,
            content_end=utterance.content_end,
            sample_rate_hz=self.speaker.sample_rate_hz,
            start_sample=self._finished[-1].end_sample if self._finished else 0,
            sample_count=self._current_samples,
            mp3=bytes(self._current_mp3),
        )

    def _current_share(self, current: Utterance) -> float:
        """Estimate which share (0 to 1) of an interrupted sentence was synthesized."""
        characters = sum(len(piece.text) for piece in self._finished)
        samples = sum(piece.sample_count for piece in self._finished)
        per_character = (
            samples / characters
            if characters
            else self.speaker.sample_rate_hz * _SECONDS_PER_CHARACTER
        )
        return min(1.0, self._current_samples / max(1.0, per_character * len(current.text)))

    def _end_stream(self, mp3: bytes) -> None:
        """Add the encoder's last frames, and trailing text without audio, to the last piece."""
        self._emit(mp3)
        last = self._finished[-1]
        self._finished[-1] = replace(
            last, mp3=(last.mp3 or b"") + mp3, content_end=self._written_characters
        )
        self._current_mp3.clear()

    def _emit(self, mp3: bytes) -> None:
        if mp3:
            self._current_mp3 += mp3
            self.mp3.append(mp3)
            self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(frozen=True, slots=True)
class VoiceTurns:
    """Creates the stages of voice turns; implements the engine's `VoiceStagesFactory`."""

    transcriber: Transcriber
    speaker: Speaker
    default_voice: str

    def make(  # noqa: PLR0913  # a part each
        self,
        recording: Recording | None,
        *,
        has_clips: bool,
        speaks: bool = True,
        sink: LiveSink | None = None,
        early: EarlyTranscription | None = None,
        vain_seconds: float = 0.0,
    ) -> VoiceTurn:
        """Return the stages of one turn; `sink` listens to its answer.

        `vain_seconds` of sound were transcribed in vain before it: its receipt has them, too.
        """
        return VoiceTurn(
            recording,
            self.transcriber,
            self.speaker,
            self.default_voice,
            has_clips,
            speaks,
            sink,
            early,
            vain_seconds,
        )
