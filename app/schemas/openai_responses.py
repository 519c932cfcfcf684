"""The body of `POST /v1/responses`, as OpenAI describes it; likewise unknown fields are ignored."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.openai_base import Metadata, OpenAIBody

_Penalty = Annotated[float, Field(ge=-2, le=2)]
_MOST_ITEMS = 4000


class ReasoningCreate(BaseModel):
    """How much the model should think."""

    model_config = ConfigDict(extra="ignore")

    effort: Annotated[str, Field(pattern=r"^[a-z]{1,16}$")] | None = None


class ConversationReference(BaseModel):
    """The conversation that a response belongs to."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(max_length=100)]


class ResponseCreate(OpenAIBody):
    """A conversation to continue."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(
        min_length=1, max_length=300, description="An agent: `agent-<slug>`, its id, or its name."
    )
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=_MOST_ITEMS)]
    instructions: str | None = None
    store: bool | None = None
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    reasoning: ReasoningCreate | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    truncation: str | None = None
    previous_response_id: Annotated[str, Field(max_length=100)] | None = None
    conversation: Annotated[str, Field(max_length=100)] | ConversationReference | None = None
    background: bool | None = None
    metadata: Metadata | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    safety_identifier: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that it names."""
        given = self.conversation
        return given.id if isinstance(given, ConversationReference) else given
