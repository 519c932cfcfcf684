"""Transcribes what somebody says on a line before it is certain that they have finished."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from app.core.errors import AppError
from app.core.security import Caller
from app.services.live_voice.inputs import TurnInput, recording_of
from app.services.live_voice.sessions import LineSession
from app.services.turns import TurnEngine
from app.services.voice import VoiceTurns
from app.services.voice.early_transcription import EarlyTranscription

_MOST_VAIN_SECONDS = 60.0
"""Of sound that was transcribed in vain since the last turn: more is not risked."""


class EarlyListener:
    """Begins transcriptions, drops them, and knows what of them no turn has paid for yet."""

    def __init__(
        self, caller: Caller, session: LineSession, turns: TurnEngine, voices: VoiceTurns
    ) -> None:
        self._caller = caller
        self._session = session
        self._turns = turns
        self._voices = voices
        self._current: EarlyTranscription | None = None
        self._dropped: list[EarlyTranscription] = []
        self._vain_seconds = 0.0

    def begin(self, pcm: bytes, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        """Transcribe samples of 16 kHz in a task that `start` begins."""
        self.drop()
        if self._count_vain() < _MOST_VAIN_SECONDS:
            early = self._current = EarlyTranscription(recording_of(pcm))
            start(partial(early.run, self._voices.transcriber, self._admit))

    async def _admit(self) -> str | None:
        await self._turns.uploads.admit_anywhere(self._caller)
        return await self._session.find_language()

    def drop(self) -> None:
        """Give up the transcription that has begun: they go on speaking."""
        early, self._current = self._current, None
        if early:
            self.drop_one(early)

    def drop_one(self, early: EarlyTranscription) -> None:
        """Give up one that was taken."""
        early.drop()
        self._dropped.append(early)

    def take(self) -> EarlyTranscription | None:
        """Return the transcription of what was said, if it has begun."""
        early, self._current = self._current, None
        return early

    def bill(self, turn_input: TurnInput) -> None:
        """Let a turn pay for what was transcribed in vain before."""
        turn_input.vain_seconds += self._count_vain()
        self._vain_seconds = 0.0

    def take_back(self, turn_input: TurnInput) -> None:
        """Take note that the turn was refused, and pays nothing."""
        turn_input.drop_early()
        self._vain_seconds += turn_input.vain_seconds

    def _count_vain(self) -> float:
        """Return the seconds so far; what is asked for only now is not in vain yet."""
        self._vain_seconds += sum(early.seconds for early in self._dropped)
        self._dropped.clear()
        return self._vain_seconds

    async def close(self) -> None:
        """Count what no turn has paid for against the caller's minutes of the day."""
        self.drop()
        try:
            with anyio.CancelScope(shield=True):
                await self._turns.uploads.charge(self._caller, self._count_vain())
        except AppError:  # the database is away: nothing depends on it
            pass
