"""Steps of a turn and the tool calls in them, as the engine works with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.models import WAITING_STATUSES, CallStatus, new_id, utc_now
from app.services.tool_ports import Effect, PinnedTool, ToolQuestion
from app.services.turns.parts import ImagePart, Part, ReasoningPart, TextPart, ToolCallPart
from app.services.usage.pricing import NANOS

FINAL = frozenset(
    (
        CallStatus.COMPLETED,
        CallStatus.FAILED,
        CallStatus.DENIED,
        CallStatus.EXPIRED,
        CallStatus.CANCELLED,
        CallStatus.UNKNOWN,
    )
)
_NO_RESULT = {
    CallStatus.CANCELLED: "The call was cancelled before it had a result.",
    CallStatus.UNKNOWN: "The call was begun, and it is not known whether it was done.",
}


@dataclass(slots=True)
class Call:
    """One tool call: the ledger's row, as this process knows it."""

    step: int
    index: int
    model_call_id: str
    name: str
    arguments: str
    tool: PinnedTool | None = None
    """`None` where the agent has no tool of that name."""
    id: UUID = field(default_factory=new_id)
    status: CallStatus = CallStatus.PENDING
    attempt: int = 0
    result: str | None = None
    stored_result: str | None = None
    images: Sequence[ImagePart] = ()
    """Of the result; they are stored."""
    error_code: str | None = None
    error_detail: str | None = None
    approval_by: str | None = None
    expires_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    question: dict[str, Any] | None = None
    """What an MCP server asks: `message`, `form`, `url`, and `state`, which goes back to it."""
    answer: dict[str, Any] | None = None
    """What was answered, until the call has ended."""
    decision: str | None = None
    """The action that somebody took, if one was wanted."""
    decided_by: str | None = None
    is_ours: bool = False
    """True where this attempt has begun it."""
    was_final: bool = False
    """True where it had ended before this attempt."""

    @property
    def is_final(self) -> bool:
        """True once the call has ended."""
        return self.status in FINAL

    @property
    def is_waiting(self) -> bool:
        """True while somebody must act."""
        return self.status in WAITING_STATUSES

    @property
    def duration_seconds(self) -> float | None:
        """How long it ran; `None` where it was not begun, or has not ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()

    @property
    def price_nanos(self) -> int:
        """What it costs to begin it, in nano-dollars."""
        return round((self.tool.price_usd or 0) * NANOS) if self.tool else 0

    @property
    def cost_nanos(self) -> int:
        """What it has cost so far: each time that it was begun."""
        return self.price_nanos * self.attempt

    def end(
        self,
        status: CallStatus,
        result: str,
        *,
        stored_result: str | None = None,
        error_code: str | None = None,
        error_detail: str | None = None,
    ) -> None:
        """Set the result, as the model is shown it."""
        self.status, self.result, self.stored_result = status, result, stored_result
        self.error_code, self.error_detail = error_code, error_detail
        self.ended_at, self.answer = utc_now(), None

    def ask(self, question: ToolQuestion) -> None:
        """Let it wait until somebody has answered."""
        self.status = CallStatus.AWAITING_ANSWER
        self.question = {
            "message": question.message,
            "form": question.form,
            "url": question.url,
            "state": dict(question.state),
        }
        self.answer = None
        seconds = self.tool.expires_seconds if self.tool else 0
        self.expires_at = utc_now() + timedelta(seconds=seconds)

    def part(self) -> ToolCallPart:
        """Return the part of the answer that this call is."""
        result = self.result if self.result is not None else _NO_RESULT.get(self.status, "")
        return ToolCallPart(
            self.model_call_id, self.name, self.arguments, self.status.value, result
        )


@dataclass(slots=True)
class Step:
    """One answer of the model with calls in it."""

    number: int
    content: str
    reasoning: str | None
    model: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usage_estimated: bool
    calls: list[Call]
    is_billed: bool = False
    """True once the usage is part of the turn's receipt."""
    is_stored: bool = False

    @property
    def is_open(self) -> bool:
        """True while a call has no result."""
        return not all(call.is_final for call in self.calls)

    @property
    def images(self) -> list[ImagePart]:
        """The images of all results, in the order of the calls."""
        return [image for call in self.calls for image in call.images]

    @property
    def stored_bytes(self) -> int:
        """About how much the step takes in the ledger, in the answer's parts and in events."""
        texts = (self.content, self.reasoning)
        of_calls = (
            text for call in self.calls for text in (call.arguments, call.result, call.result)
        )
        longer = sum(len(call.stored_result or "") for call in self.calls)
        return longer + 2 * sum(len(text or "") for text in (*texts, *of_calls))

    def parts(self) -> Iterator[Part]:
        """Yield the parts of the answer that this step is."""
        if self.reasoning:
            yield ReasoningPart(self.reasoning)
        if self.content:
            yield TextPart(self.content)
        for call in self.calls:
            yield call.part()
        yield from self.images


def parts_of(steps: Sequence[Step], reasoning: str, text: str) -> list[Part] | None:
    """Return the parts of an answer; `None` where it is plain text."""
    if not steps and not reasoning:
        return None
    parts = [part for step in steps for part in step.parts()]
    if reasoning:
        parts.append(ReasoningPart(reasoning))
    if text:
        parts.append(TextPart(text))
    return parts


def wanted_action(status: CallStatus, approval_by: str | None) -> tuple[str, str]:
    """Return what a call that waits needs, `approval`, `output` or `answer`, and from whom.

    That is `operator` or `user`: the output of a tool comes from the caller's own code.
    """
    if status is CallStatus.AWAITING_APPROVAL:
        return "approval", approval_by or "operator"
    return ("answer" if status is CallStatus.AWAITING_ANSWER else "output"), "user"


def shown_question(question: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a question without what goes back to the server alone."""
    return {key: question[key] for key in ("message", "form", "url")} if question else None


def has_acted(steps: Iterable[Step]) -> bool:
    """Tell whether a call was begun that does something: then the turn must not begin anew."""
    return any(
        call.attempt and not (call.tool and call.tool.effect is Effect.READ)
        for step in steps
        for call in step.calls
    )


def newly_ended(steps: Iterable[Step], earlier: Sequence[Step]) -> Iterator[Call]:
    """Yield the calls that ended in this attempt, or by the actions that let it begin.

    `earlier` are the steps that it began with.
    """
    for step in steps:
        is_resumed = bool(earlier) and step is earlier[-1]
        for call in step.calls:
            if call.is_final and (not call.was_final or (is_resumed and call.decision)):
                yield call


def unbilled_calls_nanos(steps: Sequence[Step]) -> int:
    """Return what calls cost that no receipt has, in nano-dollars, after a server stopped.

    The receipt of a turn that waited has its steps; what was approved then was begun later.
    """
    return sum(
        call.price_nanos * call.attempt
        for step in steps
        for call in step.calls
        if not step.is_billed or (step is steps[-1] and call.decision == "approve")
    )


def close_calls(steps: Iterable[Step]) -> list[Call]:
    """End the calls of a turn that is over: a `once` call that was begun may have been done.

    Return these.
    """
    unknown: list[Call] = []
    for step in steps:
        for call in step.calls:
            if not call.is_final:
                is_once = call.tool is None or call.tool.effect is Effect.ONCE
                was_begun = call.status is CallStatus.RUNNING
                call.status = CallStatus.UNKNOWN if was_begun and is_once else CallStatus.CANCELLED
                call.ended_at = utc_now()
                if call.status is CallStatus.UNKNOWN:
                    unknown.append(call)
    return unknown
