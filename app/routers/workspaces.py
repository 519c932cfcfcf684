"""`/workspaces`: create and list workspaces, with the admin key only.

The admin key acts in the workspace that the header `X-Workspace-Id` names.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database.workspace_scope import all_workspaces
from app.http.deps import Caller, DatabaseDep
from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import Key, idempotent
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.models import Workspace
from app.schemas.identity import WorkspaceCreate, WorkspaceRead
from app.services.identity import audit, workspaces

router = APIRouter(prefix="/workspaces", tags=["workspaces"], route_class=EndpointRoute)


async def _db_of_every_workspace(data: DatabaseDep) -> AsyncIterator[AsyncSession]:
    with all_workspaces():
        async with data.transaction() as db:
            yield db


Db = Annotated[AsyncSession, Depends(_db_of_every_workspace, scope="function")]


@router.post("", response_model=WorkspaceRead, status_code=HTTPStatus.CREATED)
async def create_workspace(body: WorkspaceCreate, db: Db, caller: Caller, key: Key) -> Response:
    """Create a workspace, which has its own agents, sessions and keys."""

    async def create() -> Workspace:
        workspace = await workspaces.create(db, body.name)
        creator = replace(caller, workspace_id=workspace.id)
        audit.record(db, creator, audit.Action.WORKSPACE_CREATED, workspace.id, name=workspace.name)
        return workspace

    return await idempotent(key, db, caller, WorkspaceRead, create)


@router.get("", response_model=list[WorkspaceRead])
async def list_workspaces(
    request: Request,
    response: Response,
    db: Db,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[Workspace]:
    """List every workspace, newest first."""
    rows = await workspaces.list_all(db, before_id=cursor_id(cursor), limit=limit + 1)
    return link_next(request, response, rows, limit, lambda workspace: workspace.id)
