"""Tables for usage: daily budgets, requests per minute, and the usage of deleted sessions."""

from datetime import date
from uuid import UUID

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Record


class Budget(Base):
    """The usage of one key, or of a workspace's requests without a key, on its latest day."""

    __tablename__ = "budgets"

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    bucket: Mapped[str] = mapped_column(String(300), primary_key=True)
    """The name of a bucket of `app.services.usage.accounts`."""
    day: Mapped[date]
    tokens: Mapped[int] = mapped_column(BigInteger)
    """Tokens used and reserved on `day`."""
    nanos: Mapped[int] = mapped_column(BigInteger)
    """Nano-dollars used and reserved on `day`."""
    upload_ms: Mapped[int] = mapped_column(BigInteger)
    """Milliseconds of recordings uploaded on `day`."""
    live_turns: Mapped[int]
    """The number of unsettled turns, of any day."""


class RequestWindow(Base):
    """The requests of a caller's latest minute that servers have reserved from its limit."""

    __tablename__ = "request_windows"
    __table_args__ = (Index(None, "minute"),)

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    bucket: Mapped[str] = mapped_column(String(300), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger)
    """Minutes since 1970."""
    taken: Mapped[int] = mapped_column(BigInteger)
    """The number of requests that all servers together have reserved."""


class KeptUsage(Record):
    """The usage of a deleted session's turn, so that reports still include it.

    Also that of a request for a transcript or speech alone, which is no turn.
    """

    __tablename__ = "kept_usage"
    __table_args__ = (Index(None, "workspace_id", "created_at"),)

    agent_id: Mapped[UUID | None]
    key_id: Mapped[str | None] = mapped_column(String(64))
    user_id: Mapped[str | None] = mapped_column(String(200))
    model: Mapped[str | None] = mapped_column(String(200))
    turns: Mapped[int]
    unpriced_turns: Mapped[int]
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    speech_in_seconds: Mapped[float]
    speech_out_characters: Mapped[int] = mapped_column(BigInteger)
    cost_nanos: Mapped[int | None] = mapped_column(BigInteger)


class KeptToolUsage(Record):
    """How a turn of a deleted session used one tool, so that reports still include it."""

    __tablename__ = "kept_tool_usage"
    __table_args__ = (Index(None, "workspace_id", "created_at"),)

    agent_id: Mapped[UUID | None]
    key_id: Mapped[str | None] = mapped_column(String(64))
    user_id: Mapped[str | None] = mapped_column(String(200))
    model: Mapped[str | None] = mapped_column(String(200))
    tool_id: Mapped[UUID]
    tool_name: Mapped[str] = mapped_column(String(64))
    tool_calls: Mapped[int]
    tool_failures: Mapped[int]
    tool_ms: Mapped[float]
    cost_nanos: Mapped[int | None] = mapped_column(BigInteger)
