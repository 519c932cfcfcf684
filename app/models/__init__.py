"""Every table. Importing this package is enough for Alembic to see them all."""

from app.models.audio import AudioClip, StoredRecording
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
from app.models.turn_log import IdempotencyKey, TurnEventBatch
from app.models.usage import Budget, KeptUsage, RequestWindow

__all__ = [
    "LIVE",
    "PERSONA_FIELDS",
    "UNSETTLED",
    "Agent",
    "AgentVersion",
    "AudioClip",
    "Base",
    "Budget",
    "IdempotencyKey",
    "KeptUsage",
    "Message",
    "MessageStatus",
    "Modality",
    "RequestWindow",
    "Role",
    "Session",
    "StoredRecording",
    "Turn",
    "TurnEventBatch",
    "TurnStatus",
    "Workspace",
    "new_id",
    "utc_now",
]
