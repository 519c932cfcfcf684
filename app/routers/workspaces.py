"""`/workspaces`: for the admin key alone, which acts in one by the header `X-Workspace-Id`."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.tenancy import service_wide
from app.models import Workspace
from app.routers.deps import Caller, Data
from app.routers.idempotency import Key, once
from app.routers.pages import Cursor, Limit, cursor_id, link_next
from app.routers.strict_route import StrictRoute
from app.schemas.identity import WorkspaceCreate, WorkspaceRead
from app.services.identity import audit, workspaces

router = APIRouter(prefix="/workspaces", tags=["workspaces"], route_class=StrictRoute)


async def _db_of_every_workspace(data: Data) -> AsyncIterator[AsyncSession]:
    with service_wide():
        async with data.transaction() as db:
            yield db


Db = Annotated[AsyncSession, Depends(_db_of_every_workspace, scope="function")]


@router.post("", response_model=WorkspaceRead, status_code=HTTPStatus.CREATED)
async def create_workspace(body: WorkspaceCreate, db: Db, caller: Caller, key: Key) -> Response:
    """Make a workspace, which has its own agents, sessions and keys."""

    async def create() -> Workspace:
        workspace = await workspaces.create(db, body.name)
        inside = replace(caller, workspace_id=workspace.id)
        audit.record(db, inside, audit.Action.WORKSPACE_CREATED, workspace.id, name=workspace.name)
        return workspace

    return await once(key, db, caller, WorkspaceRead, create)


@router.get("", response_model=list[WorkspaceRead])
async def list_workspaces(
    request: Request,
    response: Response,
    db: Db,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[Workspace]:
    """List every workspace, the newest first."""
    found = await workspaces.list_all(db, before_id=cursor_id(cursor), limit=limit + 1)
    return link_next(request, response, found, limit, lambda workspace: workspace.id)
