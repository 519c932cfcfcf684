"""A turn while this server accepts, runs or follows it."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from app.core.errors import AppError
from app.models import MessageStatus, TurnStatus
from app.services.ports import Transcript
from app.services.turns.errors import TurnCancelled
from app.services.turns.records import Outcome, Persona, Progress, Reply, TurnRecord


class VoiceStages(Protocol):
    """How a voice turn hears its user and speaks its answer; `services.voice` provides it."""

    @property
    def recording_seconds(self) -> float:
        """How long the user spoke."""
        ...

    async def hear(self, persona: Persona) -> Transcript:
        """Write down what the user said. Raises the `AppError` that ends the turn."""
        ...

    async def speak(self, persona: Persona, deltas: AsyncIterator[str]) -> int:
        """Speak the answer as it is written; return the number of characters spoken.

        Raises an `AppError`: then the turn fails, and the written answer is kept.
        """
        ...

    def ended(self, error: AppError | None) -> None:
        """Learn that the turn is settled: nothing more will be spoken."""
        ...


@dataclass(slots=True)
class LiveTurn:
    """What the engine knows of a turn; `outcome` is there once `settled` is set."""

    record: TurnRecord
    voice: VoiceStages | None = None
    accepted_at: float = field(default_factory=time.monotonic)
    progress: Progress = field(default_factory=Progress)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Cancelling it ends the turn as cancelled."""
    settled: anyio.Event = field(default_factory=anyio.Event)
    outcome: Outcome | None = None

    @property
    def text(self) -> str:
        """What has been answered so far, fit for any database."""
        return storable("".join(self.progress.text))

    def mark(self, name: str) -> None:
        """Remember when `name` was first reached, in milliseconds from acceptance."""
        elapsed_ms = (time.monotonic() - self.accepted_at) * 1000
        self.progress.timings.setdefault(name, round(elapsed_ms, 1))

    def end(self, outcome: Outcome) -> None:
        """Say how the turn ended, to all who wait for it; only the first word counts."""
        if self.settled.is_set():
            return
        self.outcome = outcome
        self.settled.set()
        if self.voice:
            self.voice.ended(outcome.error)

    def completed(self, speech_error: AppError | None = None) -> Outcome:
        """Return how a turn ends whose answer is whole; only its sound may have failed."""
        truncated = self.progress.finish_reason == "length"
        return Outcome(
            TurnStatus.FAILED if speech_error else TurnStatus.COMPLETED,
            MessageStatus.TRUNCATED if truncated else MessageStatus.COMPLETED,
            self.text,
            speech_error,
        )

    def failed(self, error: AppError) -> Outcome:
        """Return how a turn ends whose answer broke off or never began."""
        return Outcome(TurnStatus.FAILED, MessageStatus.FAILED, self.text, error)

    def cancelled(self) -> Outcome:
        """Return how a turn ends that somebody cancelled."""
        error = TurnCancelled("The turn was cancelled before it was finished.")
        return Outcome(TurnStatus.CANCELLED, MessageStatus.CANCELLED, self.text, error)

    def reply(self) -> Reply:
        """Return the settled turn's answer, or raise the error that it ended with."""
        record, outcome = self.record, self.outcome
        if outcome is None:
            raise RuntimeError("the turn is not settled")
        if outcome.error:
            outcome.error.facts["turn_id"] = str(record.id)
            raise outcome.error.with_traceback(None)
        return Reply(
            id=record.message_id,
            session_id=record.session_id,
            turn_id=record.id,
            seq=record.user_seq + 1,
            content=outcome.content,
            status=outcome.message_status,
            created_at=record.created_at,
            usage=self.progress.usage,
            timings=self.progress.timings,
            modality=record.modality,
        )


def storable(text: str) -> str:
    """Replace what Postgres text cannot hold (NUL, lone surrogates) by U+FFFD."""
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
