"""Transcription that begins before its turn: while it is not certain that somebody has finished."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio

from app.core.errors import AppError
from app.services.ports import Recording, Transcriber, Transcript

logger = logging.getLogger(__name__)


class EarlyTranscription:
    """One recording that is transcribed before its turn is accepted.

    The transcriber may bill it whether its words are used or not: see `seconds`.
    """

    def __init__(self, recording: Recording) -> None:
        self.seconds = 0.0
        """How much sound the transcriber was sent, in seconds; 0 where it failed."""
        self.transcript: Transcript | None = None
        """`None` until it is known, and where it failed or was dropped."""
        self._recording = replace(recording, is_urgent=False)
        self._language: str | None = None
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    @property
    def is_wordless(self) -> bool:
        """True once it is known that no words were said."""
        return self.transcript is not None and not self.transcript.text.strip()

    async def run(
        self, transcriber: Transcriber, admit: Callable[[], Awaitable[str | None]]
    ) -> None:
        """Transcribe; after a failure the turn asks again.

        `admit` returns the agent's language, or raises what starting the turn would.
        """
        try:
            with self._scope:
                self._language = await admit()
                self.seconds = self._recording.duration_seconds
                self.transcript = await transcriber.transcribe(
                    self._recording, language=short_language(self._language)
                )
        except AppError as error:
            self.seconds = 0.0
            logger.info("a recording was not transcribed ahead of its turn: %s", error)
        finally:
            self._ended.set()

    def drop(self) -> None:
        """Ask for it no longer."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Wait until it is known, has failed or was dropped."""
        await self._ended.wait()

    async def result(self, language: str | None) -> Transcript | None:
        """Wait for the transcript; `None` where it failed or was made for another language."""
        await self.wait()
        return self.transcript if language == self._language else None


def short_language(language: str | None) -> str | None:
    """Return an agent's language as transcribers take it, such as `en` for `en-GB`."""
    return language.partition("-")[0] if language else None
