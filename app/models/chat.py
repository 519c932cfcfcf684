"""Tables for conversations: an agent has sessions, a session has turns and messages."""

from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ForeignKeyConstraint,
    Index,
    String,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, JsonText, Record, text_enum, utc_now


class Role(StrEnum):
    """The author of a message, as in OpenAI's chat API."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Modality(StrEnum):
    """Whether a turn's message and answer are text or speech."""

    TEXT = "text"
    VOICE = "voice"


class BusyPolicy(StrEnum):
    """What becomes of a message while a turn of its session is live."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"


class TurnStatus(StrEnum):
    """The status of a turn. `COMPLETED`, `FAILED` and `CANCELLED` are final."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    REQUIRES_ACTION = "requires_action"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE = "status IN ('in_progress', 'requires_action')"
"""The condition for live turns; a unique index allows one live turn per session."""
UNSETTLED = "status IN ('queued', 'in_progress', 'requires_action')"
"""The condition for turns without a final status. It is literal SQL in queries as well, so that
the planner sees that a partial index applies."""


UNSUCCESSFUL = "status IN ('failed', 'cancelled')"
"""Few, and what is looked for in a list of turns."""


LISTED = "NOT is_hidden"
"""The condition for sessions that lists show."""


class MessageStatus(StrEnum):
    """The status of a message. `IN_PROGRESS`: its transcript or answer is not complete yet."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    """The model stopped at its limit of output tokens."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class PersonaColumns:
    """The configuration of an agent at one version. `None` means the server's default."""

    name: Mapped[str] = mapped_column(String(200))
    system_prompt: Mapped[str]
    model: Mapped[str | None] = mapped_column(String(200))
    temperature: Mapped[float | None]
    max_output_tokens: Mapped[int | None]
    context_tokens: Mapped[int | None]
    """The most tokens that prompt and answer may have together."""
    voice: Mapped[str | None] = mapped_column(String(64))
    language: Mapped[str | None] = mapped_column(String(16))
    tools: Mapped[list[dict[str, Any]] | None] = mapped_column(JsonText())
    """The pinned tools: objects with `tool_id`, `version` and `approval`."""
    tool_policy: Mapped[dict[str, Any] | None] = mapped_column(JsonText())
    output_schema: Mapped[dict[str, Any] | None] = mapped_column(JsonText())
    """The JSON Schema of the agent's answers."""
    output_speak: Mapped[str | None] = mapped_column(String(300))
    """A JSON Pointer to what is read aloud of such an answer."""
    vision: Mapped[bool | None]
    """Whether the agent's model sees images; `None` for what the server's settings say."""


PERSONA_FIELDS = tuple(PersonaColumns.__annotations__)
"""The names of these columns, in their order."""


class Agent(PersonaColumns, Record):
    """An agent at its newest version. An archived agent accepts no new sessions."""

    __tablename__ = "agents"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        Index(None, "workspace_id", "slug", unique=True),
        Index(None, "workspace_id", "name"),
    )

    version: Mapped[int] = mapped_column(default=1)
    slug: Mapped[str | None] = mapped_column(String(64))
    """Made of its first name; the model's name in OpenAI's API is `agent-` and this."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)
    archived_at: Mapped[datetime | None]


class AgentVersion(PersonaColumns, Base):
    """A version of an agent: one row for each version, including the newest."""

    __tablename__ = "agent_versions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "agent_id"], [f"{SCHEMA}.agents.workspace_id", f"{SCHEMA}.agents.id"]
        ),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Session(Record):
    """A conversation with one agent; a database session is called `db` in this code base."""

    __tablename__ = "sessions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "agent_id"], [f"{SCHEMA}.agents.workspace_id", f"{SCHEMA}.agents.id"]
        ),
        Index(None, "workspace_id", "agent_id", "id"),
        Index(None, "workspace_id", "user_id", "id"),
        Index(None, "workspace_id", "alias", unique=True),
        Index("ix_sessions_listed", "workspace_id", "id", info={"where": LISTED}),
    )

    agent_id: Mapped[UUID | None]
    """`None` before the first turn of a conversation of OpenAI's API, which names the agent."""
    user_id: Mapped[str | None] = mapped_column(String(200))
    title: Mapped[str | None] = mapped_column(String(200))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", Json(), default=dict)
    last_seq: Mapped[int] = mapped_column(default=0)
    forked_from_session_id: Mapped[UUID | None]
    forked_from_seq: Mapped[int | None]
    summary: Mapped[str | None]
    """Of the messages up to `summary_seq`, which no longer fit into prompts."""
    summary_seq: Mapped[int | None]
    is_hidden: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Left out of lists: it holds the history of responses that name no conversation."""
    alias: Mapped[str | None] = mapped_column(String(64))
    """What a client calls it, as SHA-256 together with whose it is."""
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class Turn(Record):
    """A user message, its answer, and the state and usage of answering it."""

    __tablename__ = "turns"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        # `info` documents the condition of a partial index, which the migration creates:
        # `postgresql_where` and `sqlite_where` would each import a dialect, and one is not used.
        Index(
            "uq_turns_live",
            "workspace_id",
            "session_id",
            unique=True,
            info={"where": LIVE},
        ),
        Index(None, "workspace_id", "session_id", "user_seq", unique=True),
        Index(
            "ix_turns_unsettled",
            "workspace_id",
            "session_id",
            "user_seq",
            info={"where": UNSETTLED},
        ),
        Index(
            "ix_turns_lease",
            "lease_expires_at",
            info={"where": LIVE},
        ),
        Index(None, "workspace_id", "created_at"),
        Index(None, "workspace_id", "agent_id", "id"),
        Index("ix_turns_unsuccessful", "workspace_id", "id", info={"where": UNSUCCESSFUL}),
    )

    session_id: Mapped[UUID | None]
    """`None` for an unstored turn: it has no messages either, and nobody runs it again."""
    agent_version: Mapped[int]
    modality: Mapped[Modality] = mapped_column(text_enum(Modality))
    status: Mapped[TurnStatus] = mapped_column(text_enum(TurnStatus))
    user_message_id: Mapped[UUID]
    message_id: Mapped[UUID]
    """The assistant's message, which is inserted together with the turn."""
    user_seq: Mapped[int]
    """The user message's `seq`; the assistant's is the next one."""
    attempt: Mapped[int] = mapped_column(default=1)
    """A fencing token: a write with an older attempt is refused."""
    cancel_requested_at: Mapped[datetime | None]
    """When another server than the owner requested the cancellation."""
    cancel_played_ms: Mapped[int | None]
    """With that request: how much of the answer's audio the client had played."""
    recoveries: Mapped[int] = mapped_column(default=0)
    """How often the turn was restarted because its owner's lease had expired."""
    owner_id: Mapped[UUID | None]
    """The process that runs the turn."""
    lease_expires_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    error_code: Mapped[str | None] = mapped_column(String(64))
    error_detail: Mapped[str | None]
    finish_reason: Mapped[str | None] = mapped_column(String(32))
    model: Mapped[str | None] = mapped_column(String(200))
    prompt_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    speech_in_seconds: Mapped[float | None]
    speech_out_characters: Mapped[int | None]
    timings: Mapped[dict[str, Any] | None] = mapped_column(Json())
    request: Mapped[dict[str, Any] | None] = mapped_column(Json())
    """What this turn alone asks for; `None` for what the agent's version says."""
    step_count: Mapped[int] = mapped_column(default=0, server_default="0")
    """How many steps with tool calls are stored."""
    stop_reason: Mapped[str | None] = mapped_column(String(32))
    """`max_steps` or `max_calls`, where that ended the calls."""
    agent_id: Mapped[UUID | None]
    key_id: Mapped[str | None] = mapped_column(String(64))
    """The key that is charged; `None` for the admin key and for requests from loopback."""
    user_id: Mapped[str | None] = mapped_column(String(200))
    cost_nanos: Mapped[int | None] = mapped_column(BigInteger)
    """The cost of all attempts in nano-dollars; `None` if a price is unknown."""
    usage_estimated: Mapped[bool | None]
    """True if the provider did not report the tokens of an attempt, so they were estimated."""
    reserved_day: Mapped[date | None]
    """The day whose budgets have a reservation for this turn, until it is settled."""
    reserved_tokens: Mapped[int | None] = mapped_column(BigInteger)
    reserved_nanos: Mapped[int | None] = mapped_column(BigInteger)
    reserved_buckets: Mapped[list[str] | None] = mapped_column(Json())
    """The budgets that keep it; `None` for the one of `key_id`."""


class Message(Record):
    """A message of a session. On Postgres a migration adds a full-text index on `content`."""

    __tablename__ = "messages"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        UniqueConstraint("workspace_id", "session_id", "seq"),
    )

    session_id: Mapped[UUID]
    turn_id: Mapped[UUID | None]
    """`None` for messages that a fork copied."""
    seq: Mapped[int]
    role: Mapped[Role] = mapped_column(text_enum(Role))
    modality: Mapped[Modality] = mapped_column(text_enum(Modality))
    status: Mapped[MessageStatus] = mapped_column(text_enum(MessageStatus))
    content: Mapped[str]
    parts: Mapped[list[dict[str, Any]] | None] = mapped_column(Json())
    """Typed parts; `None` for plain text, which `content` has."""
    output: Mapped[Any] = mapped_column(JsonText(), nullable=True)
    """The value of an answer that was asked for as JSON, which `content` has as text."""
    heard_content: Mapped[str | None]
    """The part of a spoken answer that was played before an interruption; `None` means all."""
