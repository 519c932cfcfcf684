"""The audit log: who changed keys, agents and workspaces, exported or deleted. It only grows."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import AuditEntry


class Action(StrEnum):
    """What is written down."""

    AGENT_CREATED = "agent.created"
    AGENT_UPDATED = "agent.updated"
    AGENT_ARCHIVED = "agent.archived"
    AGENT_RESTORED = "agent.restored"
    SESSION_EXPORTED = "session.exported"
    SESSION_DELETED = "session.deleted"
    TOKEN_CREATED = "session-token.created"  # noqa: S105  # a name
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    WORKSPACE_CREATED = "workspace.created"


def record(
    db: AsyncSession, caller: Caller, action: Action, target_id: object, **details: Any
) -> None:
    """Add an entry to the caller's transaction. `details` hold names, never what was said."""
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
    """Return up to `limit` entries older than `before_id`, the newest first."""
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
