"""Table of the names that clients of other APIs give their conversations."""

from uuid import UUID

from sqlalchemy import ForeignKeyConstraint, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import SCHEMA
from app.models.base import Base


class SessionName(Base):
    """What a client calls a conversation with an agent, and the session that this is now.

    The same name may be another conversation for another end user, and for another agent.
    """

    __tablename__ = "session_names"
    __table_args__ = (
        ForeignKeyConstraint(
            ["workspace_id", "session_id"],
            [f"{SCHEMA}.sessions.workspace_id", f"{SCHEMA}.sessions.id"],
            ondelete="CASCADE",
        ),
        Index(None, "workspace_id", "session_id"),
    )

    workspace_id: Mapped[UUID] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(200), primary_key=True)
    """The end user who gave it; empty for keys, which share their names."""
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    agent_id: Mapped[UUID] = mapped_column(primary_key=True)
    session_id: Mapped[UUID]
