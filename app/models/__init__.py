"""Every table. Importing this package is enough for Alembic to see them all."""

from app.models.base import Base, new_id, utc_now
from app.models.chat import (
    LIVE,
    PERSONA_FIELDS,
    UNSETTLED,
    Agent,
    AgentVersion,
    Message,
    MessageStatus,
    Modality,
    Role,
    Session,
    Turn,
    TurnStatus,
)
from app.models.identity import Workspace

__all__ = [
    "LIVE",
    "PERSONA_FIELDS",
    "UNSETTLED",
    "Agent",
    "AgentVersion",
    "Base",
    "Message",
    "MessageStatus",
    "Modality",
    "Role",
    "Session",
    "Turn",
    "TurnStatus",
    "Workspace",
    "new_id",
    "utc_now",
]
