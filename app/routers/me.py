"""`/me`: who the caller is, and what it may do."""

from datetime import UTC, datetime

from fastapi import APIRouter

from app.core.security import CallerKind
from app.http.deps import Caller, ReadingDb
from app.http.endpoint_route import EndpointRoute
from app.models import ApiKey, Workspace
from app.schemas.identity import CallerRead

router = APIRouter(prefix="/me", tags=["keys"], route_class=EndpointRoute)


@router.get("")
async def get_me(db: ReadingDb, caller: Caller) -> CallerRead:
    """Tell who the server takes the caller for: by key, token or cookie, or from its machine."""
    workspace = await db.get(Workspace, caller.workspace_id)
    key = await db.get(ApiKey, caller.key_id) if caller.kind is CallerKind.KEY else None
    expires_at = datetime.fromtimestamp(caller.expires_at, UTC) if caller.expires_at else None
    return CallerRead(
        kind=caller.kind,
        workspace_id=caller.workspace_id,
        workspace_name=workspace.name if workspace else "",
        key_id=caller.key_id,
        key_name=key.name if key else None,
        user_id=caller.user_id,
        session_id=caller.session_id,
        scopes=sorted(caller.permissions),
        has_credential=caller.credential is not None,
        expires_at=expires_at,
    )
