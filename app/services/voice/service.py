"""Voice turns for those who ask for them: send a recording, hear an answer, hear it again."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import UUID

from app.core.database import Database
from app.core.errors import AppError
from app.core.security import Caller
from app.models import Modality
from app.services.ports import Transcript
from app.services.turns import LiveTurn, TurnEngine, TurnOptions, audio_store
from app.services.turns.errors import TurnCancelled
from app.services.voice.errors import AudioNotStored
from app.services.voice.guard import inspect
from app.services.voice.listening import live_sound
from app.services.voice.turn import VoiceTurn, VoiceTurns


class VoiceAnswer:
    """The spoken answer of one turn, for one listener."""

    def __init__(self, turn: LiveTurn, turns: TurnEngine) -> None:
        self.turn = turn
        self.transcript = Transcript("")
        """What was understood; there once `first_sound` has returned."""
        self.whole: bytes | None = None
        """All of the MP3, where it is stored; there once `first_sound` has returned."""
        self._turns = turns
        self._chunks = _silence()
        self._first = b""

    def play(self, chunks: AsyncGenerator[bytes]) -> None:
        """Take the sound from `chunks`."""
        self._chunks = chunks

    @property
    def turn_id(self) -> UUID:
        """The turn."""
        return self.turn.record.id

    @property
    def session_id(self) -> UUID:
        """The session of the turn."""
        return self.turn.record.session_id

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
        if isinstance(self.turn.voice, VoiceTurn) and self.turn.voice.transcript:
            self.transcript = self.turn.voice.transcript
        else:
            self.transcript = Transcript(await self._turns.question(self.turn))

    async def mp3(self) -> AsyncGenerator[bytes]:
        """Yield the MP3, one continuous stream; raises in the middle if the turn fails there.

        A turn that is cancelled just ends.
        """
        async with aclosing(self._chunks):
            yield self._first
            try:
                async for chunk in self._chunks:
                    yield chunk
            except TurnCancelled:
                return


class VoiceService:
    """Runs voice turns on the turn engine."""

    def __init__(self, turns: TurnEngine, voices: VoiceTurns, database: Database) -> None:
        self._turns = turns
        self._voices = voices
        self._database = database

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
        voice = self._voices.make(recording, has_clips=with_clips)
        turn = await self._turns.start(caller, session_id, "", voice, options)
        return self._answer(turn, spare=voice)

    async def listen(self, caller: Caller, turn_id: UUID) -> VoiceAnswer:
        """Return the sound of a turn, from its beginning: live, or as it is stored.

        Its `first_sound` raises `AudioNotStored` where there is none, and the error of a live turn
        that fails before it is heard. Raises `TurnNotFound`.
        """
        turn = await self._turns.find(caller, turn_id)
        if turn.record.modality is not Modality.VOICE:
            raise AudioNotStored("A text turn has no sound.")
        return self._answer(turn)

    def _answer(self, turn: LiveTurn, spare: VoiceTurn | None = None) -> VoiceAnswer:
        answer = VoiceAnswer(turn, self._turns)
        answer.play(self._sound(answer, spare))
        return answer

    async def _sound(self, answer: VoiceAnswer, spare: VoiceTurn | None) -> AsyncGenerator[bytes]:
        """Yield the MP3 from its beginning; it ends when all is stored.

        `spare` can speak an answer again of which no sound was kept. Raises the error that the
        turn ended with.
        """
        turn, heard = answer.turn, False
        async with aclosing(live_sound(self._turns, self._database, turn)) as chunks:
            async for chunk in chunks:
                heard = True
                yield chunk
        if heard:
            return
        if spare:  # the same request again fails as it did
            turn.reply()
        async with self._database.reading() as db:
            pieces = await audio_store.read_pieces(
                await db.connection(), turn.record.workspace_id, turn.record.id
            )
        mp3 = b"".join(piece.mp3 or b"" for piece in pieces)
        if mp3:
            answer.whole = mp3
            yield mp3
        elif spare:
            async with aclosing(self._say_again(turn, spare)) as chunks:
                async for chunk in chunks:
                    yield chunk
        else:
            raise AudioNotStored("No sound of this turn is kept.")

    async def _say_again(self, turn: LiveTurn, voice: VoiceTurn) -> AsyncGenerator[bytes]:
        """Speak the answer of a turn that is settled, once more."""
        reply = turn.reply()

        async def words() -> AsyncGenerator[str]:
            yield reply.content

        await voice.speak(turn.record.persona, words(), lambda _clip: None, lambda _name: None)
        yield b"".join(voice.mp3)


async def _silence() -> AsyncGenerator[bytes]:
    return
    yield b""
