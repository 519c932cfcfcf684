"""What clients send and receive about agents, sessions, turns and messages."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import AliasChoices, Field, StringConstraints

from app.models import MessageStatus, Modality, Role, TurnStatus
from app.schemas.base import Metadata, Name, NonBlank, Request, Response, Text

SystemPrompt = Annotated[Text, StringConstraints(max_length=200_000)]
ModelName = Annotated[NonBlank, StringConstraints(max_length=200)]
VoiceName = Annotated[NonBlank, StringConstraints(max_length=64)]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})?$")]
Temperature = Annotated[float, Field(ge=0, le=2)]
ContextTokens = Annotated[int, Field(ge=512, le=10_000_000)]
OutputTokens = Annotated[int, Field(ge=1, le=1_000_000)]
UserId = Annotated[NonBlank, StringConstraints(max_length=200)]
Title = Annotated[Text, StringConstraints(max_length=200)]


class AgentCreate(Request):
    """A new agent. What is left out is the server's default."""

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


class AgentUpdate(Request):
    """Any subset of an agent's fields; `null` sets one back to the server's default."""

    name: Name = Field(default="", validate_default=False, examples=["Ada"])
    system_prompt: SystemPrompt = Field(default="", validate_default=False)
    model: ModelName | None = None
    temperature: Temperature | None = None
    max_output_tokens: OutputTokens | None = None
    context_tokens: ContextTokens | None = None
    voice: VoiceName | None = None
    language: Language | None = None


class PersonaRead(Response):
    """What an agent is."""

    name: str
    system_prompt: str
    model: str | None
    temperature: float | None
    max_output_tokens: int | None
    context_tokens: int | None
    voice: str | None
    language: str | None
    version: int
    created_at: datetime


class AgentRead(PersonaRead):
    """An agent at its newest version."""

    id: UUID
    updated_at: datetime
    archived_at: datetime | None


class AgentVersionRead(PersonaRead):
    """An agent as it was at one version."""

    agent_id: UUID


class SessionCreate(Request):
    """A new conversation with an agent."""

    agent_id: UUID
    title: Title | None = None
    user_id: UserId | None = Field(default=None, description="Your own id of the end user.")
    metadata: Metadata = Field(default_factory=dict[str, Any])


class SessionUpdate(Request):
    """Any subset of these; `null` clears the title or the user."""

    title: Title | None = None
    user_id: UserId | None = None
    metadata: Metadata = Field(default_factory=dict[str, Any])


class SessionFork(Request):
    """Where to cut: the `seq` of the last message to copy; all of them without it."""

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


class MessageRead(Response):
    """One message. While its turn runs, an assistant's message is `in_progress` and empty."""

    id: UUID
    session_id: UUID
    turn_id: UUID | None
    seq: int
    role: Role
    content: str
    heard_content: str | None = Field(
        description="What was heard of a spoken answer before it was interrupted: later prompts "
        "use it. `null` means all of it."
    )
    status: MessageStatus
    modality: Modality
    created_at: datetime


class SessionHistory(SessionRead):
    """A conversation with all of its messages, oldest first."""

    messages: list[MessageRead]


class OnBusy(StrEnum):
    """What becomes of a message while another turn of its session is live."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


class OnDisconnect(StrEnum):
    """What becomes of a turn whose client leaves."""

    CONTINUE = "continue"
    CANCEL = "cancel"


class TextMessageCreate(Request):
    """A message to the session's agent."""

    session_id: UUID
    content: Annotated[NonBlank, StringConstraints(max_length=200_000)] = Field(
        examples=["What is the capital of France?"]
    )
    on_busy: OnBusy = Field(
        default=OnBusy.ENQUEUE,
        description="While another turn of the session is live: wait, be refused, or cut it short.",
    )
    on_disconnect: OnDisconnect = Field(
        default=OnDisconnect.CONTINUE,
        description="What becomes of the turn when this request's connection is lost.",
    )


class TurnCancel(Request):
    """How much of the answer's sound the user has heard, where it is an interruption."""

    played_ms: Annotated[int, Field(ge=0, le=86_400_000)] | None = None


class UsageRead(Response):
    """What a turn used; `null` where the provider did not say, or the price is not known."""

    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    estimated: bool = Field(
        description="True where the provider did not say, and tokens are counted by length."
    )


class TurnUsageRead(UsageRead):
    """All that a turn used, in all of its attempts."""

    speech_in_seconds: float | None
    speech_out_characters: int | None


class ReplyRead(MessageRead):
    """The assistant's message, with what it took; `timings` are milliseconds."""

    usage: UsageRead
    timings: dict[str, float]


class TurnError(Response):
    """Why a turn did not complete; `code` is one of the documented error codes."""

    code: str
    detail: str


class TurnRead(Response):
    """A turn: one user message and everything done to answer it."""

    id: UUID
    session_id: UUID
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
    model: str | None
    usage: TurnUsageRead
    speech_in_seconds: float | None
    speech_out_characters: int | None
    timings: dict[str, float]


class TurnWithMessage(TurnRead):
    """A turn with the assistant's message of it."""

    message: MessageRead


class RecordingRead(Response):
    """What a voice turn's user sent; `data` is base64."""

    format: str
    duration_seconds: float
    data: str


class ClipRead(Response):
    """One spoken piece of an answer: where it plays, and where it is written."""

    index: int
    text: str
    start_ms: int
    duration_ms: int
    content_start: int
    content_end: int


class TurnAudio(Response):
    """The sound of one turn, as far as it is kept; `mp3` is base64 of the whole answer."""

    turn_id: UUID
    recording: RecordingRead | None
    mp3: str | None
    clips: list[ClipRead]


class SessionExport(Response):
    """Everything that is stored of a conversation."""

    session: SessionRead
    agent: AgentRead
    messages: list[MessageRead]
    turns: list[TurnRead]
    audio: list[TurnAudio]
