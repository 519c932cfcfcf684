"""The state of a turn in this process, and its event log.

Events and locks are asyncio's, because anyio's look up the event loop type at each call.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import anyio

from app.core.errors import AppError
from app.core.request_context import RequestContext, context_for_turn
from app.core.storable_text import storable_text
from app.models import MessageStatus, Modality, Role, TurnStatus
from app.services.turns.context.heard_text import heard_text
from app.services.turns.errors import (
    InternalError,
    TurnCancellation,
    TurnInterrupted,
    is_retryable,
    unknown_outcome,
)
from app.services.turns.events import (
    AnswerMessage,
    EventValue,
    OutputTextDelta,
    RequiredAction,
    TurnCancelled,
    TurnCompleted,
    TurnCreated,
    TurnEvent,
    TurnFailed,
    TurnInProgress,
    TurnProblem,
    TurnQueued,
    TurnRequiresAction,
)
from app.services.turns.execution.event_log import AFTER_ATTEMPT, EventLog
from app.services.turns.parts import (
    PARAGRAPH,
    REQUESTED,
    Part,
    TextPart,
    ToolCallPart,
    encode_parts,
)
from app.services.turns.records import Outcome, Progress, Reply, TurnRecord
from app.services.turns.steps import (
    Call,
    close_calls,
    has_acted,
    newly_ended,
    parts_of,
    shown_question,
    unbilled_calls_nanos,
    wanted_action,
)
from app.services.turns.voice_port import SpokenPiece, VoiceStages
from app.services.usage import Reservation


@dataclass(slots=True)
class LiveTurn:
    """The state of a turn in this process; `outcome` is set before `settled`."""

    record: TurnRecord
    voice: VoiceStages | None = None
    is_replayed: bool = False
    """True if an idempotency key returned this existing turn."""
    accepted_at: float = field(default_factory=time.monotonic)
    progress: Progress = field(default_factory=Progress)
    log: EventLog = field(default_factory=EventLog)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    """Cancelling it cancels the turn, or releases it if `is_interrupted_by_shutdown`."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Outcome | None = None
    store_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while events are stored, so that checkpoint and settlement store no event twice."""
    has_unknown_commit: bool = False
    """True if the last COMMIT of this turn had no answer: what it stored is looked up first."""
    had_unstored_events: bool = False
    stored_pieces: int = 0
    """Number of audio pieces that are stored."""
    is_interrupted_by_shutdown: bool = False
    """True if this server shut down before the turn was finished."""
    client_count: int = 0
    """Of an unstored turn: how many clients wait for it; it is cancelled when the last leaves."""
    played_ms: int | None = None
    """Played part of the answer's audio at cancellation, in milliseconds."""
    context: RequestContext = field(init=False)
    """What its log records and spans have in common; with the ids of the request that began it."""

    def __post_init__(self) -> None:
        """Take the ids of the running request."""
        self.context = context_for_turn(self.record.id)
        self.log.began_at = self.record.created_at.timestamp()
        if self.record.steps:
            self._restore_steps()

    def _restore_steps(self) -> None:
        """Begin with the steps that earlier attempts stored."""
        progress = self.progress
        progress.steps = list(self.record.steps)
        progress.tools_nanos = unbilled_calls_nanos(self.record.steps)
        texts = [step.content for step in progress.steps if step.content]
        progress.text = [PARAGRAPH.join(texts)] if texts else []
        progress.step_text_start = len(progress.text)

    def is_found_in(self, workspace_id: UUID) -> bool:
        """Tell whether clients of the workspace find it by its id: they find no unstored turn."""
        return self.record.workspace_id == workspace_id and self.record.keeps_content

    def set_reservation(self, reservation: Reservation) -> None:
        """Take note of what budgets have reserved for the turn."""
        self.record = replace(self.record, reservation=reservation)

    def begin(self) -> None:
        """Emit the events of a turn that starts to run."""
        self.emit_acceptance()
        if self.record.was_queued:
            self.mark("queue_ms")
        self.log.emit(TurnInProgress(self.record.attempt))
        if self.progress.text:  # of stored steps, for clients that begin anew with the attempt
            self.log.emit(OutputTextDelta(self.text))

    def interrupt_for_shutdown(self) -> None:
        """Stop the turn so that another server restarts it, unless it is already cancelled."""
        if not self.scope.cancel_called:
            self.is_interrupted_by_shutdown = True
            self.scope.cancel()

    def take_over(self, record: TurnRecord) -> None:
        """Continue a turn of another server; number events above all that it stored or sent."""
        self.record = record
        if record.steps:
            self._restore_steps()
        if self._needs_acceptance_events:
            self._append_acceptance()
        self.log.skip_to(self._first_number, is_stored=record.events_after > 0)

    def emit_acceptance(self) -> None:
        """Emit the events of acceptance once, numbered above those of earlier attempts."""
        if not self._needs_acceptance_events:
            return
        if self.record.attempt > 1:
            self.log.skip_to(self._first_number, is_stored=False)
        self._append_acceptance()

    @property
    def _first_number(self) -> int:
        """The first number above all earlier attempts, also those without stored events."""
        last_shown = max(self.record.numbers_after, AFTER_ATTEMPT * (self.record.attempt - 2))
        return last_shown + AFTER_ATTEMPT

    @property
    def _needs_acceptance_events(self) -> bool:
        return self.log.next_number == 1 and not self.record.events_after

    def _append_acceptance(self) -> None:
        record = self.record
        created = TurnCreated(
            record.id, record.session_id, record.user_message_id, record.message_id
        )
        self.log.emit(created)
        if record.was_queued:
            self.log.emit(TurnQueued())

    def unstored_pieces(self) -> Sequence[SpokenPiece]:
        """Return the finished audio pieces that are not stored yet."""
        return self.voice.finished_pieces()[self.stored_pieces :] if self.voice else ()

    def append_text(self, delta: str) -> None:
        """Append a delta to the answer and to the event log."""
        self.progress.text.append(delta)
        self.log.append_text(delta)

    def append_reasoning(self, delta: str) -> None:
        """Append what the model thinks aloud to the step and to the event log."""
        self.progress.reasoning.append(delta)
        self.log.append_reasoning(delta)

    @property
    def waits_for_action(self) -> bool:
        """True if this attempt ended because somebody must act."""
        return self.outcome is not None and self.outcome.status is TurnStatus.REQUIRES_ACTION

    def ended_calls(self) -> list[Call]:
        """Return the tool calls that ended in this attempt, or by what let it begin."""
        return list(newly_ended(self.progress.steps, self.record.steps))

    def required_actions(self) -> list[RequiredAction]:
        """Return what somebody must do before the turn goes on."""
        return [
            required_action(call)
            for step in self.progress.steps
            for call in step.calls
            if call.is_waiting
        ]

    def terminal_event(self, outcome: Outcome) -> TurnEvent:
        """Create the terminal event of `outcome`; it is published after it is stored."""
        self.log.flush_text()
        value: EventValue
        match outcome.status:
            case TurnStatus.COMPLETED:
                progress = self.progress
                value = TurnCompleted(
                    self._answer(outcome),
                    progress.usage,
                    progress.timings,
                    len(progress.steps) + len(progress.rejected) + 1,
                    progress.stop_reason,
                    outcome.output,
                )
            case TurnStatus.REQUIRES_ACTION:
                value = TurnRequiresAction(self.required_actions())
            case TurnStatus.CANCELLED:
                value = TurnCancelled(self._answer(outcome))
            case _:
                error = outcome.error or InternalError("The turn failed.")
                problem = TurnProblem(error.code, error.title(), error.detail)
                may_repeat = is_retryable(error) and not has_acted(self.progress.steps)
                value = TurnFailed(problem, may_repeat)
        return self.log.next_event(value)

    def _answer(self, outcome: Outcome) -> AnswerMessage:
        record = self.record
        return AnswerMessage(
            id=record.message_id,
            session_id=record.session_id,
            turn_id=record.id,
            seq=record.user_seq + 1,
            role=Role.ASSISTANT,
            content=outcome.content,
            heard_content=outcome.heard_content,
            status=outcome.message_status,
            modality=record.output,
            created_at=self.progress.ended_at or record.created_at,
        )

    def heard_content(self, content: str) -> str | None:
        """Return what was heard of the answer's `content`; `None` means all, or no speech."""
        if self.played_ms is None or self.record.output is not Modality.VOICE:
            return None
        return heard_text(content, self.voice.pieces() if self.voice else (), self.played_ms)

    def stored_bytes(self, outcome: Outcome) -> int:
        """Return about how much the turn's end stores: answer, events, results and sound."""
        size = 2 * len(outcome.content)  # in the message and in the events
        if self.progress.steps:
            size += sum(step.stored_bytes for step in self.progress.steps)
        if self.voice:
            size += sum(len(piece.mp3 or b"") for piece in self.voice.pieces())
        return size

    @property
    def text(self) -> str:
        """The answer so far, without characters that databases cannot store."""
        return storable_text("".join(self.progress.text))

    @property
    def _content(self) -> str:
        """The answer; where it is JSON, without the texts of steps before it."""
        output_text = self.progress.output_text
        return self.text if output_text is None else output_text

    def mark(self, name: str) -> None:
        """Record the time of the stage `name`, in milliseconds from acceptance; only the first."""
        elapsed_ms = (time.monotonic() - self.accepted_at) * 1000
        self.progress.timings.setdefault(name, round(elapsed_ms, 1))

    def note_attempts(self) -> None:
        """Add the attempts at providers to the timings, where one failed: `chat_attempt_1_ms`."""
        numbers: dict[str, int] = {}
        for call in self.context.provider_calls:
            if call.error or call.attempt > 1:
                number = numbers[call.capability] = numbers.get(call.capability, 0) + 1
                name = f"{call.capability}_attempt_{number}_ms"
                self.progress.timings[name] = round((call.ended_at - call.started_at) * 1000, 1)

    def end(self, outcome: Outcome) -> None:
        """Set the outcome and wake all that wait for it; later calls have no effect."""
        if self.settled.is_set():
            return
        self.outcome = outcome
        self.settled.set()
        self.log.wake()
        if self.voice:
            self.voice.on_settled(outcome.error)

    def completed_outcome(self, speech_error: AppError | None = None) -> Outcome:
        """Create the outcome of a complete answer, whose speech synthesis may have failed."""
        # JSON that is whole is not cut off.
        truncated = self.progress.finish_reason == "length" and self.progress.output_text is None
        return Outcome(
            TurnStatus.FAILED if speech_error else TurnStatus.COMPLETED,
            MessageStatus.TRUNCATED if truncated else MessageStatus.COMPLETED,
            self._content,
            speech_error,
            self._parts_with_calls() if self.progress.calls else self._parts(),
            output=self.progress.output,
        )

    def waiting_outcome(self) -> Outcome:
        """Create the outcome of an attempt that waits until somebody acts."""
        return Outcome(
            TurnStatus.REQUIRES_ACTION,
            MessageStatus.IN_PROGRESS,
            self.text,
            parts=self._parts(),
        )

    def failed_outcome(self, error: AppError) -> Outcome:
        """Create the outcome of a turn whose answer is incomplete or missing.

        Where it stops in the middle of a `once` call, that is its error.
        """
        unknown = close_calls(self.progress.steps)
        if unknown and not self.is_interrupted_by_shutdown:  # else another server decides
            error = unknown_outcome(unknown[0].id, unknown[0].name, error)
        return Outcome(TurnStatus.FAILED, MessageStatus.FAILED, self._content, error, self._parts())

    def cancelled_outcome(self) -> Outcome:
        """Create the outcome of a cancelled turn, or of an unstored one at a shutdown."""
        if self.is_interrupted_by_shutdown and not self.record.keeps_content:
            return self.failed_outcome(
                TurnInterrupted(
                    "The server is shutting down; send the request again.", retry_after_seconds=1
                )
            )
        error = TurnCancellation("The turn was cancelled before it was finished.")
        close_calls(self.progress.steps)
        return Outcome(
            TurnStatus.CANCELLED, MessageStatus.CANCELLED, self.text, error, self._parts()
        )

    def _parts(self) -> list[Part] | None:
        progress = self.progress
        if not progress.steps and not progress.reasoning:
            return None
        text = storable_text("".join(progress.text[progress.step_text_start :]))
        return parts_of(progress.steps, storable_text("".join(progress.reasoning)), text)

    def _parts_with_calls(self) -> list[Part]:
        """Return the parts of an answer that ends with calls of the caller's own tools."""
        text: list[Part] = [TextPart(self.text)] if self.text else []
        calls = self.progress.calls
        return [
            *(self._parts() or text),
            *(
                ToolCallPart(call.model_call_id, call.name, call.arguments, REQUESTED, "")
                for call in (calls[place] for place in sorted(calls))
            ),
        ]

    def reply(self) -> Reply:
        """Return the reply of the settled turn, or raise the error that it ended with."""
        record, outcome = self.record, self.outcome
        if outcome is None:
            raise RuntimeError("the turn is not settled")
        if outcome.error:
            outcome.error.extensions["turn_id"] = str(record.id)
            outcome.error.has_effects = has_acted(self.progress.steps)
            raise outcome.error.with_traceback(None)
        return Reply(
            id=record.message_id,
            session_id=record.session_id,
            turn_id=record.id,
            seq=record.user_seq + 1,
            role=Role.ASSISTANT,
            content=outcome.content,
            heard_content=outcome.heard_content,
            status=outcome.message_status,
            modality=record.output,
            created_at=self.progress.ended_at or record.created_at,
            parts=encode_parts(outcome.parts) if outcome.parts else None,
            output=outcome.output,
            usage=self.progress.usage,
            timings=self.progress.timings,
        )


def required_action(call: Call) -> RequiredAction:
    """Return what somebody must do for a call that waits."""
    action, by = wanted_action(call.status, call.approval_by)
    question = shown_question(call.question) if action == "answer" else None
    return RequiredAction(call.id, action, call.name, call.arguments, by, call.expires_at, question)
