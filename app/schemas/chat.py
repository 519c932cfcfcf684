"""Schemas of agents, sessions, turns and messages."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BeforeValidator,
    Field,
    StringConstraints,
)

from app.models import BusyPolicy, MessageStatus, Modality, Role, TurnStatus, utc_now
from app.schemas.answers import AnswerFormatField, AnswerValue, OutputSchema, OutputSpeak
from app.schemas.base import Changes, Metadata, Name, NonBlank, Request, Response, Text, storable
from app.schemas.files import MessageContent
from app.schemas.languages import language_code
from app.schemas.tool_calls import RequiredActionRead, StepRead, ToolCallRead
from app.schemas.tools import (
    AgentMcpToolsRead,
    AgentToolRead,
    AgentToolRefs,
    ToolPolicyFields,
    ToolPolicyRead,
)

SystemPrompt = Annotated[Text, StringConstraints(max_length=200_000)]
ModelName = Annotated[NonBlank, StringConstraints(max_length=200)]
VoiceName = Annotated[NonBlank, StringConstraints(max_length=64)]
Language = Annotated[str, AfterValidator(language_code)]
Temperature = Annotated[float, Field(ge=0, le=2)]
ContextTokens = Annotated[int, Field(ge=512, le=10_000_000)]
OutputTokens = Annotated[int, Field(ge=1, le=1_000_000)]
UserId = Annotated[NonBlank, StringConstraints(max_length=200)]
Title = Annotated[Text, StringConstraints(max_length=200)]


_NOBODY = UUID(int=0)


class AgentCreate(Request):
    """A new agent. Omitted fields have the server's defaults."""

    name: Name = Field(examples=["Ada"])
    system_prompt: SystemPrompt = Field(
        default="You are a helpful assistant.", examples=["You are Ada. Answer briefly."]
    )
    model: ModelName | None = None
    temperature: Temperature | None = None
    max_output_tokens: OutputTokens | None = None
    context_tokens: ContextTokens | None = None
    voice: VoiceName | None = None
    language: Language | None = Field(default=None, description="ISO 639-1, such as `en`.")
    tools: AgentToolRefs = Field(default_factory=list[Any])
    tool_policy: ToolPolicyFields | None = None
    output_schema: OutputSchema = None
    output_speak: OutputSpeak = None
    vision: bool | None = Field(default=None, description="Whether its model sees images.")


class AgentUpdate(Changes):
    """Any subset of an agent's fields; `null` resets a field to the server's default."""

    name: Name = Field(default="", validate_default=False, examples=["Ada"])
    system_prompt: SystemPrompt = Field(default="", validate_default=False)
    model: ModelName | None = None
    temperature: Temperature | None = None
    max_output_tokens: OutputTokens | None = None
    context_tokens: ContextTokens | None = None
    voice: VoiceName | None = None
    language: Language | None = None
    tools: AgentToolRefs = Field(default_factory=list[Any])
    tool_policy: ToolPolicyFields | None = None
    output_schema: OutputSchema = None
    output_speak: OutputSpeak = None
    vision: bool | None = None


def _none_as_empty(tools: object) -> object:
    return [] if tools is None else tools


class PersonaRead(Response):
    """The configuration of an agent at one version."""

    name: str
    system_prompt: str
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    context_tokens: int | None
    voice: str | None
    language: str | None
    tools: Annotated[list[AgentToolRead | AgentMcpToolsRead], BeforeValidator(_none_as_empty)]
    tool_policy: ToolPolicyRead | None
    output_schema: dict[str, Any] | None
    output_speak: str | None
    vision: bool | None
    version: int
    created_at: datetime


class AgentRead(PersonaRead):
    """An agent at its newest version."""

    id: UUID
    updated_at: datetime
    archived_at: datetime | None


class AgentVersionRead(PersonaRead):
    """An agent at an earlier or its newest version."""

    agent_id: UUID


def _not_in_future(moment: datetime) -> datetime:
    if storable(moment) > utc_now():
        raise ValueError("must not be in the future")
    return moment


class MessageImport(Request):
    """A message of a conversation that took place elsewhere."""

    role: Literal[Role.USER, Role.ASSISTANT]
    content: Annotated[NonBlank, StringConstraints(max_length=200_000)]
    created_at: Annotated[AwareDatetime, AfterValidator(_not_in_future)] | None = Field(
        default=None, description="When it was written; by default now."
    )


class SessionCreate(Request):
    """A new conversation with an agent, or one that continues another system's."""

    agent_id: UUID
    title: Title | None = None
    user_id: UserId | None = Field(default=None, description="Your own id of the end user.")
    metadata: Metadata = Field(default_factory=dict[str, Any])
    messages: Annotated[list[MessageImport], Field(max_length=1000)] = Field(
        default_factory=list[MessageImport],
        description="The conversation so far, oldest message first. Not for end users.",
    )


class SessionUpdate(Changes):
    """Any subset of a session's fields; `null` clears the title or the user."""

    agent_id: UUID = Field(
        default=_NOBODY, validate_default=False, description="Another agent, for the next turns."
    )
    title: Title | None = None
    user_id: UserId | None = None
    metadata: Metadata = Field(default_factory=dict[str, Any])


class SessionFork(Request):
    """The `seq` of the last message to copy; without it, all messages are copied."""

    up_to_seq: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None


class SessionRead(Response):
    """A conversation, without its messages."""

    id: UUID
    agent_id: UUID
    user_id: str | None
    title: str | None
    metadata: dict[str, Any] = Field(validation_alias=AliasChoices("metadata_", "metadata"))
    last_seq: int
    forked_from_session_id: UUID | None
    forked_from_seq: int | None
    created_at: datetime
    updated_at: datetime


class SessionTurn(Response):
    """A turn of a session, in the session's events: `GET /turns/{turn_id}` has all of it."""

    turn_id: UUID = Field(validation_alias=AliasChoices("id", "turn_id"))
    user_message_id: UUID
    message_id: UUID = Field(description="Of the answer.")
    user_seq: int = Field(description="The `seq` of the user's message; the answer has the next.")
    modality: Modality
    status: TurnStatus
    attempt: int


class SearchMatchRead(Response):
    """The first message that has all words of a search: its `seq`, and the text around one."""

    seq: int
    snippet: str


class SessionListed(SessionRead):
    """A conversation in a list; `preview` and `match` are there with `preview=true`."""

    preview: str | None = Field(description="How the first message begins.")
    match: SearchMatchRead | None = Field(
        description="Where a search found its words; `null` where they are in the title."
    )


class MessageRead(Response):
    """A message. While its turn runs, the assistant's message is `in_progress` and empty."""

    id: UUID
    session_id: UUID
    turn_id: UUID | None
    seq: int
    role: Role
    content: str
    heard_content: str | None = Field(
        description="The part of a spoken answer that the user had heard when it was interrupted. "
        "Later prompts contain this part only. `null` means that all of it was heard."
    )
    status: MessageStatus
    modality: Modality
    created_at: datetime
    parts: list[dict[str, Any]] | None = Field(
        description="Typed parts (`text`, `reasoning`, `tool_call`, `refusal`, `image`, `file`) in "
        "their order; `null` for plain text, which `content` has."
    )
    output: AnswerValue


class DisconnectPolicy(StrEnum):
    """What to do with a turn when its client disconnects."""

    CONTINUE = "continue"
    CANCEL = "cancel"


class TextMessageCreate(Request):
    """A message to the session's agent."""

    session_id: UUID
    content: MessageContent = Field(
        description="Text, or parts in their order: texts, images and documents.",
        examples=["What is the capital of France?"],
    )
    on_busy: BusyPolicy = Field(
        default=BusyPolicy.ENQUEUE,
        description="What to do while another turn of the session is live: wait for its end "
        "(`enqueue`), refuse this message (`reject`), or cancel that turn (`interrupt`).",
    )
    on_disconnect: DisconnectPolicy = Field(
        default=DisconnectPolicy.CONTINUE,
        description="What to do with the turn when this request's connection is lost: finish it "
        "(`continue`) or cancel it (`cancel`).",
    )
    output: Modality = Field(
        default=Modality.TEXT,
        description="How the answer is given: as JSON (`text`), or spoken, as MP3 (`voice`). A "
        "stream of events has text in both cases, and the sound of each sentence with `voice`.",
    )
    response_format: AnswerFormatField = None
    agent_version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        default=None,
        description="Answer with this version of the agent instead of its newest, for example to "
        "compare the two. For keys with the scope `agents:read`.",
    )


class TurnCancel(Request):
    """How much of the answer's audio was played, in milliseconds, if the user interrupted it."""

    played_ms: Annotated[int, Field(ge=0, le=86_400_000)] | None = None


class UsageRead(Response):
    """The usage of a turn; `null` if the provider did not report it or the price is unknown."""

    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    estimated: bool = Field(
        description="True if the provider did not report tokens, so they are estimated from the "
        "length of the text."
    )


class TurnUsageRead(UsageRead):
    """The usage of a turn, summed over all of its attempts."""

    speech_in_seconds: float | None
    speech_out_characters: int | None


class ReplyRead(MessageRead):
    """The assistant's message, with its usage and timings in milliseconds."""

    usage: UsageRead
    timings: dict[str, float]


class VoiceReplyRead(ReplyRead):
    """The written answer to a recording, with the transcript of the recording."""

    transcription: str


class TurnError(Response):
    """The reason why a turn did not complete; `code` is one of the documented error codes."""

    code: str
    detail: str


class MessageOrder(StrEnum):
    """From which end a history is read."""

    OLDEST_FIRST = "asc"
    NEWEST_FIRST = "desc"


class HistoryMessageRead(MessageRead):
    """A message of a history; an answer has what its turn took, other messages have `null`."""

    attempt: int | None
    model: str | None
    usage: TurnUsageRead | None
    timings: dict[str, float] | None
    error: TurnError | None


class SessionHistory(SessionRead):
    """A conversation with all of its messages, oldest first, or without them."""

    messages: list[HistoryMessageRead] | None = Field(
        description="Oldest first. `null` with `messages=false`."
    )


class TurnRead(Response):
    """A turn: a user message and the state of answering it. `timings` are milliseconds."""

    id: UUID
    session_id: UUID | None = Field(
        description="`null` for an unstored turn, of which nothing but this is kept."
    )
    status: TurnStatus
    modality: Modality
    attempt: int
    agent_version: int
    user_message_id: UUID
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: TurnError | None
    finish_reason: str | None
    stop_reason: str | None = Field(
        description="The limit that ended its tool calls, if one did: `max_steps`, `max_calls` or "
        "`max_usd_per_turn`."
    )
    model: str | None
    usage: TurnUsageRead
    timings: dict[str, float]


class TurnWithMessage(TurnRead):
    """A turn with its assistant's message, and the tool calls in it."""

    message: MessageRead
    steps: list[StepRead] = Field(description="The model's answers before the last one.")
    tool_calls: list[ToolCallRead]
    required_actions: list[RequiredActionRead] = Field(
        description="What `requires_action` waits for: `POST /tool-calls/{call_id}/resolution`."
    )
