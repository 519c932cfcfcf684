"""Tables for the audio of voice turns: uploaded recordings and synthesized speech."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, utc_now


def _of_a_turn() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["workspace_id", "turn_id"],
        [f"{SCHEMA}.turns.workspace_id", f"{SCHEMA}.turns.id"],
        ondelete="CASCADE",
    )


class StoredRecording(Base):
    """The recording that a voice turn answers.

    It is stored at least until the turn is settled, whatever the retention of audio is.
    """

    __tablename__ = "recordings"
    __table_args__ = (_of_a_turn(), Index(None, "created_at"))

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    format: Mapped[str] = mapped_column(String(8))
    duration_seconds: Mapped[float]
    has_clips: Mapped[bool]
    """True if the turn's event stream includes clips of MP3."""
    data: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class StoredClip(Base):
    """One spoken piece of an answer. The clips of a turn, one after the other, are its MP3."""

    __tablename__ = "audio_clips"
    __table_args__ = (_of_a_turn(), Index(None, "created_at"))

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    turn_id: Mapped[UUID] = mapped_column(primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    """The position in the answer, from 0."""
    text: Mapped[str]
    """The text that was spoken; unlike the message's content it has no Markdown and no code."""
    content_start: Mapped[int]
    """The offset of the piece in the message's content, in characters."""
    content_end: Mapped[int]
    sample_rate_hz: Mapped[int]
    start_sample: Mapped[int]
    sample_count: Mapped[int]
    start_ms: Mapped[int]
    duration_ms: Mapped[int]
    mp3: Mapped[bytes | None] = mapped_column(LargeBinary)
    """The piece's frames of the turn's MP3 stream; `None` if audio is not stored."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
