"""The append-only audit log: changes of keys, agents, tools, secrets; exports and deletions."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import AuditEntry


class Action(StrEnum):
    """The actions that the audit log records."""

    AGENT_CREATED = "agent.created"
    AGENT_UPDATED = "agent.updated"
    AGENT_ARCHIVED = "agent.archived"
    AGENT_UNARCHIVED = "agent.unarchived"
    AGENT_RESTORED = "agent.restored"
    SESSION_EXPORTED = "session.exported"
    SESSIONS_IMPORTED = "sessions.imported"
    SESSION_DELETED = "session.deleted"
    TOOL_CALL_RESOLVED = "tool-call.resolved"
    USER_DELETED = "user.deleted"
    TOKEN_CREATED = "session-token.created"  # noqa: S105  # a name
    CLIENT_SECRET_CREATED = "client-secret.created"  # noqa: S105  # a name
    CONSOLE_SIGNED_IN = "console.signed-in"
    KEY_CREATED = "key.created"
    KEY_UPDATED = "key.updated"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    TOOL_CREATED = "tool.created"
    TOOL_UPDATED = "tool.updated"
    TOOL_ARCHIVED = "tool.archived"
    MCP_SERVER_CREATED = "mcp-server.created"
    MCP_SERVER_UPDATED = "mcp-server.updated"
    MCP_SERVER_LISTED = "mcp-server.listed"
    MCP_SERVER_ARCHIVED = "mcp-server.archived"
    MCP_SERVER_AUTHORIZED = "mcp-server.authorized"
    MCP_TOOL_ACCEPTED = "mcp-tool.accepted"
    SECRET_CREATED = "secret.created"  # noqa: S105  # a name
    SECRET_REPLACED = "secret.replaced"  # noqa: S105  # a name
    SECRET_DELETED = "secret.deleted"  # noqa: S105  # a name
    SECRETS_ROTATED = "secrets.rotated"  # a name
    WORKSPACE_CREATED = "workspace.created"


def record(
    db: AsyncSession, caller: Caller, action: Action, target_id: object, **details: Any
) -> None:
    """Insert an entry in the transaction `db`. `details` hold names, never message texts."""
    entry = AuditEntry(
        workspace_id=caller.workspace_id,
        actor=caller.actor,
        action=action.value,
        target_id=str(target_id),
        details=details,
    )
    db.add(entry)


async def list_entries(
    db: AsyncSession, workspace_id: UUID, *, before_id: UUID | None, limit: int
) -> Sequence[AuditEntry]:
    """Return up to `limit` entries older than `before_id`, newest first."""
    return (
        await db.scalars(
            select(AuditEntry)
            .where(
                AuditEntry.workspace_id == workspace_id,
                AuditEntry.id < before_id if before_id else true(),
            )
            .order_by(AuditEntry.id.desc())
            .limit(limit)
        )
    ).all()
