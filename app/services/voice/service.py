"""Voice turns for the endpoints: accept a recording, stream its answer, stream it again."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from app.core.database import Database
from app.core.errors import AppError, ErrorKind
from app.core.security import Caller
from app.models import Modality
from app.services.audio.errors import AudioRefused
from app.services.ports import Transcript
from app.services.turns import LiveTurn, Reply, TurnEngine, TurnOptions
from app.services.turns.errors import TurnCancellation
from app.services.turns.execution.finalization import read_transcript
from app.services.turns.storage import audio_store
from app.services.voice.audio_stream import stream_turn_audio
from app.services.voice.errors import AudioNotKept, AudioNotStored
from app.services.voice.turn import VoiceTurn, VoiceTurns
from app.services.voice.upload_check import UploadCheck

_REFUSED_AFTER_LISTENING = {ErrorKind.CONFLICT, ErrorKind.TOO_MANY}
"""The session is busy, or what the turn takes is more than is left."""


class VoiceAnswer:
    """The answer of one turn with a recording or with audio, for one response."""

    def __init__(self, turn: LiveTurn, database: Database) -> None:
        self.turn = turn
        self.transcript = Transcript("")
        """The transcript of the recording, if there is one; set once `first_sound` or `written` has
        returned."""
        self.whole: bytes | None = None
        """The complete MP3 if it is stored; set once `first_sound` has returned."""
        self._database = database
        self._chunks = _silence()
        self._first = b""

    def play(self, chunks: AsyncGenerator[bytes]) -> None:
        """Set the source of the MP3."""
        self._chunks = chunks

    @property
    def turn_id(self) -> UUID:
        """The turn's id."""
        return self.turn.record.id

    @property
    def session_id(self) -> UUID:
        """The id of the turn's session."""
        return self.turn.record.session_id

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds from acceptance to each stage, by name."""
        return self.turn.progress.timings

    async def first_sound(self) -> None:
        """Wait for the first audio. Raises the error that the turn ended with."""
        try:
            self._first = await anext(self._chunks)
        except AppError as error:
            error.extensions["turn_id"] = str(self.turn_id)
            raise
        await self._load_transcript()

    async def written(self, turns: TurnEngine) -> Reply:
        """Wait for the written answer to a recording. Raises the error that the turn ended with."""
        reply = await turns.result(self.turn)
        await self._load_transcript()
        return reply

    async def _load_transcript(self) -> None:
        if self.turn.record.modality is Modality.TEXT:
            return
        if isinstance(self.turn.voice, VoiceTurn) and self.turn.voice.transcript:
            self.transcript = self.turn.voice.transcript
        else:
            self.transcript = Transcript(await read_transcript(self._database, self.turn.record))

    async def mp3(self) -> AsyncGenerator[bytes]:
        """Yield the MP3 as one continuous stream; raises the turn's error if it fails meanwhile.

        The stream of a cancelled turn ends without an error.
        """
        async with aclosing(self._chunks):
            yield self._first
            try:
                async for chunk in self._chunks:
                    yield chunk
            except TurnCancellation:
                return


class VoiceService:
    """Runs voice turns on the turn engine."""

    def __init__(
        self, turns: TurnEngine, voices: VoiceTurns, database: Database, uploads: UploadCheck
    ) -> None:
        self._turns = turns
        self._voices = voices
        self._database = database
        self._uploads = uploads

    @property
    def voice_names(self) -> frozenset[str] | None:
        """The voices that an agent may have; `None` where nobody knows them."""
        return self._voices.speaker.voices

    async def reply_to_recording(  # noqa: PLR0913  # keyword arguments beside the request
        self,
        caller: Caller,
        session_id: UUID,
        data: bytes,
        options: TurnOptions,
        *,
        with_clips: bool = False,
        speaks: bool = True,
    ) -> VoiceAnswer:
        """Accept a recording as a turn; return the answer, whose audio follows if it `speaks`.

        `with_clips` adds an event with the MP3 of each sentence to the turn's event stream.
        A recording that is refused is not stored, and no provider is called; the seconds that were
        decoded in vain count against the day's minutes. Raises what `UploadCheck.check` and
        `TurnEngine.start` raise.
        """
        await self._turns.uploads.admit(caller, session_id, options.key)
        try:
            recording = await self._uploads.check(data, caller)
        except AudioRefused as refusal:
            await self._turns.uploads.charge(caller, refusal.listened_seconds)
            raise
        voice = self._voices.make(recording, has_clips=with_clips and speaks, speaks=speaks)
        try:
            turn = await self._turns.start(caller, session_id, "", voice, options)
        except AppError as error:
            if error.kind in _REFUSED_AFTER_LISTENING:
                await self._turns.uploads.charge(caller, recording.duration_seconds)
            raise
        return self._answer(turn, new_stages=voice)

    async def speak_reply(
        self,
        caller: Caller,
        session_id: UUID,
        content: str,
        options: TurnOptions,
        *,
        with_clips: bool = False,
    ) -> VoiceAnswer:
        """Accept a written message as a turn; return the answer, whose audio follows.

        Raises what `TurnEngine.start` raises.
        """
        voice = self._voices.make(None, has_clips=with_clips)
        turn = await self._turns.start(caller, session_id, content, voice, options)
        return self._answer(turn, new_stages=voice)

    async def find_answer(self, caller: Caller, turn_id: UUID) -> VoiceAnswer:
        """Return the answer of a turn, with its audio from the beginning: live or stored.

        Its `first_sound` raises `AudioNotStored` where no audio is stored, and the error of a live
        turn that fails before its first audio. Raises `TurnNotFound`.
        """
        turn = await self._turns.find(caller, turn_id)
        if turn.record.output is not Modality.VOICE:
            raise AudioNotStored("The answer of this turn is not spoken: read its text.")
        return self._answer(turn)

    def _answer(self, turn: LiveTurn, new_stages: VoiceTurn | None = None) -> VoiceAnswer:
        answer = VoiceAnswer(turn, self._database)
        answer.play(self._sound(answer, new_stages))
        return answer

    async def _sound(
        self, answer: VoiceAnswer, new_stages: VoiceTurn | None
    ) -> AsyncGenerator[bytes]:
        """Yield the MP3 from its beginning, until the turn is settled.

        Raises the error that the turn ended with, and `AudioNotKept` where a repeated request's
        audio, `new_stages`, is not stored any more.
        """
        turn, has_sound = answer.turn, False
        async with aclosing(stream_turn_audio(self._turns, self._database, turn)) as chunks:
            async for chunk in chunks:
                has_sound = True
                yield chunk
        if has_sound:
            return
        if new_stages:  # a repeated request raises the error of the first one
            turn.reply()
        async with self._database.reading() as db:
            pieces = await audio_store.read_pieces(
                await db.connection(), turn.record.workspace_id, turn.record.id
            )
        mp3 = b"".join(piece.mp3 or b"" for piece in pieces)
        if mp3:
            answer.whole = mp3
            yield mp3
        elif new_stages and (pieces or turn.is_replayed):
            raise await self._not_kept(turn)
        elif new_stages:  # nothing of the answer can be spoken
            yield b""
        else:
            raise AudioNotStored(
                "No audio of this turn is stored any more: read the answer's text instead."
            )

    async def _not_kept(self, turn: LiveTurn) -> AudioNotKept:
        """Return the error that has the answer's text: to speak it again would cost money."""
        error = AudioNotKept(
            "This request was answered before, and its audio is not kept: `content` is its text."
        )
        error.extensions["content"] = turn.reply().content
        if turn.record.modality is Modality.VOICE:
            error.extensions["transcription"] = await read_transcript(self._database, turn.record)
        return error


async def _silence() -> AsyncGenerator[bytes]:
    return
    yield b""
