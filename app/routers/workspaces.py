"""`/workspaces`: for the admin key alone, which acts in one by the header `X-Workspace-Id`."""

from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.models import Workspace
from app.routers.deps import Caller, Db, ReadingDb
from app.routers.pages import Cursor, Limit, cursor_id, link_next
from app.routers.strict_route import StrictRoute
from app.schemas.identity import WorkspaceCreate, WorkspaceRead
from app.services.identity import audit, workspaces

router = APIRouter(prefix="/workspaces", tags=["workspaces"], route_class=StrictRoute)


@router.post("", response_model=WorkspaceRead, status_code=HTTPStatus.CREATED)
async def create_workspace(body: WorkspaceCreate, db: Db, caller: Caller) -> Workspace:
    """Make a workspace, which has its own agents, sessions and keys."""
    workspace = await workspaces.create(db, body.name)
    inside = replace(caller, workspace_id=workspace.id)
    audit.record(db, inside, audit.Action.WORKSPACE_CREATED, workspace.id, name=workspace.name)
    return workspace


@router.get("", response_model=list[WorkspaceRead])
async def list_workspaces(
    request: Request,
    response: Response,
    db: ReadingDb,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[Workspace]:
    """List every workspace, the newest first."""
    found = await workspaces.list_all(db, before_id=cursor_id(cursor), limit=limit + 1)
    return link_next(request, response, found, limit, lambda workspace: workspace.id)
