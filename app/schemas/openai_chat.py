"""The body of `POST /v1/chat/completions`, as OpenAI describes it.

Unknown fields are ignored, since clients send many; `null` is absent. What is known and not
supported is refused by `app.routers.openai.chat_request`, and so are faults inside messages and
tools, whose items are checked there one by one.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.openai_base import OpenAIBody

_MOST_MESSAGES = 2000
_MOST_BIASES = 300
_Stop = Annotated[str, Field(min_length=1, max_length=500)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class ChatCompletionCreate(OpenAIBody):
    """A conversation to continue."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(
        min_length=1, max_length=300, description="An agent: `agent-<slug>`, its id, or its name."
    )
    messages: list[dict[str, Any]] = Field(min_length=1, max_length=_MOST_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^[0-9]{1,10}$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(max_length=_MOST_BIASES),
        ]
        | None
    ) = None
    reasoning_effort: Annotated[str, Field(pattern=r"^[a-z]{1,16}$")] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    n: int | None = None
    response_format: dict[str, Any] | None = None
