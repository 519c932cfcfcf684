"""Tables of a conversation: an agent has sessions, a session has turns and messages."""

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
)
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Json, Record, text_enum, utc_now


class Role(StrEnum):
    """Who speaks, in the words of the chat API."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Modality(StrEnum):
    """How a turn came in and goes out."""

    TEXT = "text"
    VOICE = "voice"


class TurnStatus(StrEnum):
    """A turn goes from `QUEUED` or `IN_PROGRESS` to exactly one of the last three."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    REQUIRES_ACTION = "requires_action"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE = "status IN ('in_progress', 'requires_action')"
"""At most one turn of a session is live: a unique index says so."""
UNSETTLED = "status IN ('queued', 'in_progress', 'requires_action')"
"""Literal SQL, in queries too: the planner must see that a partial index applies."""


class MessageStatus(StrEnum):
    """`IN_PROGRESS` is a place kept for what a turn has yet to hear or to answer."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    """The model stopped at its limit of output tokens."""
    FAILED = "failed"
    CANCELLED = "cancelled"


class Persona:
    """What an agent is at one version of it. `None` means the server's default."""

    name: Mapped[str] = mapped_column(String(200))
    system_prompt: Mapped[str]
    model: Mapped[str | None] = mapped_column(String(200))
    temperature: Mapped[float | None]
    max_output_tokens: Mapped[int | None]
    context_tokens: Mapped[int | None]
    """How many tokens prompt and answer may have together."""
    voice: Mapped[str | None] = mapped_column(String(64))
    language: Mapped[str | None] = mapped_column(String(16))


PERSONA_FIELDS = (
    "name",
    "system_prompt",
    "model",
    "temperature",
    "max_output_tokens",
    "context_tokens",
    "voice",
    "language",
)


class Agent(Persona, Record):
    """A persona at its newest version. An archived one takes no new sessions."""

    __tablename__ = "agents"
    __table_args__ = (ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),)

    version: Mapped[int] = mapped_column(default=1)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)
    archived_at: Mapped[datetime | None]


class AgentVersion(Persona, Base):
    """A persona as it was: one row for each version, the newest included."""

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
    """One conversation with one agent. Never called `session` where `db` is meant."""

    __tablename__ = "sessions"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "agent_id"], [f"{SCHEMA}.agents.workspace_id", f"{SCHEMA}.agents.id"]
        ),
        Index(None, "workspace_id", "agent_id", "id"),
        Index(None, "workspace_id", "user_id", "id"),
    )

    agent_id: Mapped[UUID]
    user_id: Mapped[str | None] = mapped_column(String(200))
    title: Mapped[str | None] = mapped_column(String(200))
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", Json(), default=dict)
    last_seq: Mapped[int] = mapped_column(default=0)
    forked_from_session_id: Mapped[UUID | None]
    forked_from_seq: Mapped[int | None]
    updated_at: Mapped[datetime] = mapped_column(default=utc_now)


class Turn(Record):
    """One user message and everything done to answer it."""

    __tablename__ = "turns"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        # `info` says which rows an index is of, and the migration makes it so: each of SQLAlchemy's
        # `postgresql_where` and `sqlite_where` would load a dialect, of which only one is used.
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
    )

    session_id: Mapped[UUID]
    agent_version: Mapped[int]
    modality: Mapped[Modality] = mapped_column(text_enum(Modality))
    status: Mapped[TurnStatus] = mapped_column(text_enum(TurnStatus))
    user_message_id: Mapped[UUID]
    message_id: Mapped[UUID]
    """The assistant's message: its place is kept from the start."""
    user_seq: Mapped[int]
    """The user message's `seq`; the assistant's is the next one."""
    attempt: Mapped[int] = mapped_column(default=1)
    """A fence: a write that carries an older attempt is refused."""
    cancel_requested_at: Mapped[datetime | None]
    cancel_played_ms: Mapped[int | None]
    """How much of the answer's sound whoever asked for that had played."""
    """Asked for by another server than the one that runs it."""
    recoveries: Mapped[int] = mapped_column(default=0)
    """How often it was run again because its owner died."""
    owner_id: Mapped[UUID | None]
    """The process that runs it."""
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
    agent_id: Mapped[UUID | None]
    key_id: Mapped[str | None] = mapped_column(String(64))
    """The key that paid; `None` for the admin key and for this machine's own requests."""
    user_id: Mapped[str | None] = mapped_column(String(200))
    cost_nanos: Mapped[int | None] = mapped_column(BigInteger)
    """Nano-dollars of every attempt; `None` where a price is not known."""
    usage_estimated: Mapped[bool | None]
    """True where the provider did not say how many tokens an attempt used."""
    reserved_day: Mapped[date | None]
    """The day whose budgets keep something for this turn, while it is not settled."""
    reserved_tokens: Mapped[int | None] = mapped_column(BigInteger)
    reserved_nanos: Mapped[int | None] = mapped_column(BigInteger)


class Message(Record):
    """What one side said. On Postgres the migration adds a full-text index of `content`."""

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
    heard_content: Mapped[str | None]
    """What was heard of a spoken answer before it was interrupted; `None` means all of it."""
