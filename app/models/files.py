"""Tables for files: images and documents of messages, and the sessions that use them."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, deferred, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base, Record


class StoredFile(Record):
    """An image or a document.

    The row of a file in the file store is there before its bytes, and goes after them: then no
    bytes are left that no row knows, whenever the server is killed.
    """

    __tablename__ = "files"
    __table_args__ = (
        ForeignKeyConstraint(["workspace_id"], [f"{SCHEMA}.workspaces.id"]),
        Index(None, "workspace_id", "user_id", "id"),
        Index(None, "workspace_id", "session_id"),
        Index(None, "expires_at"),
    )

    name: Mapped[str] = mapped_column(String(200))
    media_type: Mapped[str] = mapped_column(String(100))
    """What the bytes are, whatever the client said."""
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    width: Mapped[int | None]
    """In pixels; `None` for documents."""
    height: Mapped[int | None]
    text: Mapped[str | None] = deferred(mapped_column())
    """The text of a document, as prompts show it; `None` for images."""
    text_tokens: Mapped[int | None]
    user_id: Mapped[str | None] = mapped_column(String(200))
    """The end user who uploaded it, or whose session it was made in."""
    session_id: Mapped[UUID | None]
    """The session whose token uploaded it, or in which a tool made it."""
    is_stored: Mapped[bool]
    """False while the bytes in the file store are written or deleted; then nobody sees it."""
    in_store: Mapped[bool]
    """True where the bytes are in the file store, and not in `data`."""
    data: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))
    expires_at: Mapped[datetime | None]
    """When it is deleted; `None` while a session uses it."""


class SessionFile(Base):
    """A file that a message of the session uses."""

    __tablename__ = "session_files"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["workspace_id", "file_id"], [f"{SCHEMA}.files.workspace_id", f"{SCHEMA}.files.id"]
        ),
        Index(None, "workspace_id", "file_id"),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[UUID] = mapped_column(primary_key=True)
    file_id: Mapped[UUID] = mapped_column(primary_key=True)
