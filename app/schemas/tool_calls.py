"""Shapes of tool calls, of steps, and of the actions that calls wait for."""

from datetime import datetime
from typing import Any, Literal, cast
from uuid import UUID

from pydantic import Field, JsonValue, model_validator

from app.models import CallStatus
from app.schemas.base import Request, Response


class ToolCallError(Response):
    """Why a call has no result."""

    code: str
    detail: str


class ResolutionRead(Response):
    """The action that was taken for a call."""

    decision: Literal["approve", "deny", "output", "error", "expire"]
    by: str
    at: datetime
    reason: str | None = None


class ToolCallRead(Response):
    """One use of a tool by the model."""

    id: UUID
    turn_id: UUID
    session_id: UUID
    agent_id: UUID | None
    tool_id: UUID | None
    tool_version: int | None
    step: int
    index: int
    model_call_id: str = Field(description="The id that the model gave the call.")
    name: str
    kind: str | None
    effect: str | None
    arguments: str = Field(description="JSON, as the model wrote it.")
    status: CallStatus
    attempt: int
    result: str | None = Field(description="What the model is shown.")
    files: list[dict[str, Any]] | None = Field(
        description="The images of the result, as parts of a message; `null` without any."
    )
    error: ToolCallError | None
    approval_by: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    resolution: ResolutionRead | None


class ToolCallDetail(ToolCallRead):
    """A call with its whole result."""

    stored_result: str | None = Field(
        description="The result up to 256 KB, where the model is shown less; else `null`."
    )


class StepRead(Response):
    """An answer of the model that called tools."""

    number: int
    content: str
    model: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usage_estimated: bool
    created_at: datetime


class RequiredActionRead(Response):
    """What somebody must do before the turn goes on."""

    call_id: UUID
    action: Literal["approval", "output"]
    name: str
    arguments: str
    by: str
    expires_at: datetime | None


class ToolCallResolve(Request):
    """Exactly one action: a decision, an output, or an error."""

    decision: Literal["approve", "deny"] | None = None
    reason: str | None = Field(None, max_length=2000, description="Of a denial.")
    output: JsonValue = Field(None, description="The output of the caller's own tool.")
    error: str | None = Field(None, min_length=1, max_length=16_384)

    @model_validator(mode="before")
    @classmethod
    def _require_one(cls, value: Any) -> Any:  # noqa: ANN401  # not validated yet
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value)
            actions = [name for name in ("decision", "output", "error") if name in value]
            if len(actions) != 1:
                raise ValueError("give exactly one of `decision`, `output` and `error`")
            if "reason" in value and value.get("decision") != "deny":
                raise ValueError("`reason` belongs to the decision `deny`")
        return value
