"""Tables for turns with several steps: earlier answers, and the ledger of tool calls."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, Record, text_enum, utc_now


class CallStatus(StrEnum):
    """The status of a tool call. The last six are final."""

    PENDING = "pending"
    """Allowed, and not begun."""
    AWAITING_APPROVAL = "awaiting_approval"
    AWAITING_OUTPUT = "awaiting_output"
    """The caller's own code runs it."""
    AWAITING_ANSWER = "awaiting_answer"
    """It was begun, and its MCP server asks something."""
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """It was begun, and nobody can tell whether it was done."""


WAITING_STATUSES = (
    CallStatus.AWAITING_APPROVAL,
    CallStatus.AWAITING_OUTPUT,
    CallStatus.AWAITING_ANSWER,
)
WAITING_CALLS = "status IN ('awaiting_approval', 'awaiting_output', 'awaiting_answer')"
"""The condition for calls that somebody must act on."""
UNFINISHED_CALLS = (
    "status IN ('pending', 'awaiting_approval', 'awaiting_output', 'awaiting_answer', 'running')"
)
"""The condition for calls without a final status."""
LONG_RESULTS = "stored_result IS NOT NULL"
"""The condition for calls whose full result is longer than what the model was shown."""


class TurnStep(Base):
    """One answer of the model with the calls in it; a turn's last answer is no row."""

    __tablename__ = "turn_steps"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "turn_id"],
            [f"{SCHEMA}.turns.workspace_id", f"{SCHEMA}.turns.id"],
            ondelete="CASCADE",
        ),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    """From 1 on."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    content: Mapped[str]
    """The text before the calls."""
    reasoning: Mapped[str | None]
    model: Mapped[str | None] = mapped_column(String(200))
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    usage_estimated: Mapped[bool]
    is_billed: Mapped[bool]
    """True once the usage is part of the turn's receipt."""


class ToolCall(Record):
    """One use of a tool by the model; its id is its idempotency key at whoever is called."""

    __tablename__ = "tool_calls"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "turn_id"],
            [f"{SCHEMA}.turns.workspace_id", f"{SCHEMA}.turns.id"],
            ondelete="CASCADE",
        ),
        Index(None, "workspace_id", "turn_id", "step", "index", unique=True),
        Index(None, "workspace_id", "session_id", "id"),
        Index("ix_tool_calls_waiting", "expires_at", info={"where": WAITING_CALLS}),
        Index("ix_tool_calls_inbox", "workspace_id", "id", info={"where": WAITING_CALLS}),
        Index("ix_tool_calls_long_results", "ended_at", info={"where": LONG_RESULTS}),
    )

    turn_id: Mapped[UUID]
    session_id: Mapped[UUID]
    agent_id: Mapped[UUID | None]
    step: Mapped[int]
    index: Mapped[int]
    """Its place among the calls of the step, from 0 on."""
    model_call_id: Mapped[str] = mapped_column(String(200))
    """The id that the model gave it, which prompts show again."""
    tool_id: Mapped[UUID | None]
    """`None` where the model named a tool that the agent does not have."""
    tool_version: Mapped[int | None]
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str | None] = mapped_column(String(16))
    effect: Mapped[str | None] = mapped_column(String(16))
    arguments: Mapped[str]
    """JSON, byte for byte as the model wrote it."""
    status: Mapped[CallStatus] = mapped_column(text_enum(CallStatus, 24))
    attempt: Mapped[int] = mapped_column(default=0)
    """How often it was begun."""
    result: Mapped[str | None]
    """What the model is shown."""
    stored_result: Mapped[str | None]
    """The longer result, where that is not all of it."""
    files: Mapped[list[dict[str, Any]] | None] = mapped_column(Json())
    """The images of the result, as parts of a message; `None` without any."""
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None]
    approval_by: Mapped[str | None] = mapped_column(String(16))
    """Who may approve it, where that is needed."""
    expires_at: Mapped[datetime | None]
    """When an action that is waited for is too late."""
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    resolution: Mapped[dict[str, Any] | None] = mapped_column(Json())
    """The action that was taken: `decision`, `by`, `at`, and `reason` or a digest of the output."""
    cost_nanos: Mapped[int | None] = mapped_column(BigInteger)
    question: Mapped[dict[str, Any] | None] = mapped_column(Json())
    """What the MCP server asks, as in `ToolQuestion`; it stays after the answer."""
    answer: Mapped[dict[str, Any] | None] = mapped_column(Json())
    """What was answered, until the call has ended."""
