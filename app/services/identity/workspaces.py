"""Create and list workspaces; only the admin key may."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Workspace


async def create(db: AsyncSession, name: str) -> Workspace:
    """Insert a workspace; return it with its id set."""
    workspace = Workspace(name=name)
    db.add(workspace)
    await db.flush()
    return workspace


async def list_all(db: AsyncSession, *, before_id: UUID | None, limit: int) -> Sequence[Workspace]:
    """Return up to `limit` workspaces older than `before_id`, newest first."""
    return (
        await db.scalars(
            select(Workspace)
            .where(Workspace.id < before_id if before_id else true())
            .order_by(Workspace.id.desc())
            .limit(limit)
        )
    ).all()
