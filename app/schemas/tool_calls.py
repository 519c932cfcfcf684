"""Shapes of tool calls, of steps, and of the actions that calls wait for."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self, cast
from uuid import UUID

from pydantic import Field, JsonValue, StringConstraints, model_validator

from app.models import CallStatus
from app.schemas.base import Request, Response, storable_json


class ToolCallError(Response):
    """Why a call has no result."""

    code: str
    detail: str


class ResolutionRead(Response):
    """The action that was taken for a call."""

    decision: Literal["approve", "deny", "output", "error", "answer", "expire"]
    by: str
    at: datetime
    reason: str | None = None


class QuestionRead(Response):
    """What an MCP server asks before a call goes on."""

    message: str
    form: dict[str, Any] | None = Field(description="JSON Schema of the answer's content.")
    url: str | None = Field(description="Of a page to visit instead; the server never opens it.")


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
    question: QuestionRead | None = Field(
        default=None, description="What its MCP server asked last."
    )


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
    action: Literal["approval", "output", "answer"]
    name: str
    arguments: str
    by: str
    expires_at: datetime | None
    question: QuestionRead | None = Field(default=None, description="Of an `answer`.")


AnswerValue = (
    Annotated[str, StringConstraints(max_length=16_384)]
    | bool
    | int
    | float
    | Annotated[list[Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=100)]
    | None
)


class QuestionAnswer(Request):
    """The answer to a question of an MCP server."""

    action: Literal["accept", "decline", "cancel"] = "accept"
    content: Annotated[dict[str, AnswerValue], Field(max_length=100)] | None = Field(
        default=None, description="The fields of the form, where it is accepted."
    )

    @model_validator(mode="after")
    def _is_storable(self) -> Self:
        if self.content is not None:
            storable_json(self.content)
        if self.action != "accept" and self.content is not None:
            raise ValueError("`content` belongs to the action `accept`")
        return self


class ToolCallResolve(Request):
    """Exactly one action: a decision, an output, an error, or an answer."""

    decision: Literal["approve", "deny"] | None = None
    reason: str | None = Field(None, max_length=2000, description="Of a denial.")
    output: JsonValue = Field(None, description="The output of the caller's own tool.")
    error: str | None = Field(None, min_length=1, max_length=16_384)
    answer: QuestionAnswer | None = Field(None, description="To a question of an MCP server.")

    @model_validator(mode="before")
    @classmethod
    def _require_one(cls, value: Any) -> Any:  # noqa: ANN401  # not validated yet
        if isinstance(value, dict):
            value = cast("dict[str, Any]", value)
            actions = [name for name in ("decision", "output", "error", "answer") if name in value]
            if len(actions) != 1:
                raise ValueError("give exactly one of `decision`, `output`, `error` and `answer`")
            if "reason" in value and value.get("decision") != "deny":
                raise ValueError("`reason` belongs to the decision `deny`")
        return value
