"""Tables for reconnecting clients: the events of turns, and idempotency keys."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, utc_now


class TurnEventBatch(Base):
    """Consecutive events of a turn that were stored together, in the order of their numbers."""

    __tablename__ = "turn_events"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "turn_id"],
            [f"{SCHEMA}.turns.workspace_id", f"{SCHEMA}.turns.id"],
            ondelete="CASCADE",
        ),
        Index(None, "created_at"),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    last_number: Mapped[int] = mapped_column(primary_key=True)
    events: Mapped[bytes] = mapped_column(LargeBinary)
    """One line per event: `NUMBER TYPE DATA`, where DATA is JSON."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class IdempotencyKey(Base):
    """An idempotency key and the result of its first request: a turn, or a stored response."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "turn_id"],
            [f"{SCHEMA}.turns.workspace_id", f"{SCHEMA}.turns.id"],
            ondelete="CASCADE",
        ),
        Index(None, "created_at"),
        Index(None, "workspace_id", "turn_id"),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary(32))
    """SHA-256 of the request's path and body."""
    turn_id: Mapped[UUID | None]
    status: Mapped[int | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
