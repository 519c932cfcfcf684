"""The SQLAlchemy models. Importing this package registers every table, for Alembic."""

from app.models.audio import StoredClip, StoredRecording
from app.models.base import Base, new_id, utc_now
from app.models.chat import (
    LISTED,
    LIVE,
    PERSONA_FIELDS,
    UNSETTLED,
    UNSUCCESSFUL,
    Agent,
    AgentVersion,
    BusyPolicy,
    Message,
    MessageStatus,
    Modality,
    Role,
    Session,
    Turn,
    TurnStatus,
)
from app.models.files import SessionFile, StoredFile
from app.models.identity import (
    ApiKey,
    AuditEntry,
    ClientSecret,
    ConsoleSession,
    SessionToken,
    Workspace,
)
from app.models.mcp import AgentMcpServer, McpServer, McpTool
from app.models.session_names import SessionName
from app.models.steps import (
    LONG_RESULTS,
    UNFINISHED_CALLS,
    WAITING_CALLS,
    WAITING_STATUSES,
    CallStatus,
    ToolCall,
    TurnStep,
)
from app.models.tools import AgentTool, StoredSecret, Tool, ToolVersion
from app.models.turn_log import IdempotencyKey, TurnEventBatch
from app.models.usage import Budget, KeptToolUsage, KeptUsage, RequestWindow

__all__ = [
    "LISTED",
    "LIVE",
    "LONG_RESULTS",
    "PERSONA_FIELDS",
    "UNFINISHED_CALLS",
    "UNSETTLED",
    "UNSUCCESSFUL",
    "WAITING_CALLS",
    "WAITING_STATUSES",
    "Agent",
    "AgentMcpServer",
    "AgentTool",
    "AgentVersion",
    "ApiKey",
    "AuditEntry",
    "Base",
    "Budget",
    "BusyPolicy",
    "CallStatus",
    "ClientSecret",
    "ConsoleSession",
    "IdempotencyKey",
    "KeptToolUsage",
    "KeptUsage",
    "McpServer",
    "McpTool",
    "Message",
    "MessageStatus",
    "Modality",
    "RequestWindow",
    "Role",
    "Session",
    "SessionFile",
    "SessionName",
    "SessionToken",
    "StoredClip",
    "StoredFile",
    "StoredRecording",
    "StoredSecret",
    "Tool",
    "ToolCall",
    "ToolVersion",
    "Turn",
    "TurnEventBatch",
    "TurnStatus",
    "TurnStep",
    "Workspace",
    "new_id",
    "utc_now",
]
