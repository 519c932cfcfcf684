"""What accounts use: a day's budgets, a minute's requests, and receipts of what was deleted."""

from datetime import date
from uuid import UUID

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import Base, Record


class Budget(Base):
    """What a key, or a workspace without one, has used of its newest day; one row for each."""

    __tablename__ = "budgets"

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    bucket: Mapped[str] = mapped_column(String(64), primary_key=True)
    """The key's id; empty for what comes without a key."""
    day: Mapped[date]
    tokens: Mapped[int] = mapped_column(BigInteger)
    """Used and reserved on `day`."""
    nanos: Mapped[int] = mapped_column(BigInteger)
    """Nano-dollars, likewise."""
    upload_ms: Mapped[int] = mapped_column(BigInteger)
    live_turns: Mapped[int]
    """Turns that are not settled, of whatever day."""


class RequestWindow(Base):
    """How many requests of a caller's newest minute its servers have taken for themselves."""

    __tablename__ = "request_windows"
    __table_args__ = (Index(None, "minute"),)

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    bucket: Mapped[str] = mapped_column(String(300), primary_key=True)
    minute: Mapped[int] = mapped_column(BigInteger)
    """Minutes since 1970."""
    taken: Mapped[int] = mapped_column(BigInteger)


class KeptUsage(Record):
    """What the turns of a deleted session used, without a word of them: bills stay whole."""

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
