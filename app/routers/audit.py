"""`/audit`: the log of changes to keys and agents, exports and deletions."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from app.http.deps import Caller, ReadingDb
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.models import AuditEntry
from app.schemas.identity import AuditRead
from app.services.identity import audit

router = APIRouter(prefix="/audit", tags=["keys"], route_class=EndpointRoute)


@router.get("", response_model=list[AuditRead], name="list_audit_entries")
async def list_entries(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[AuditEntry]:
    """List the audit log of the workspace, newest entry first."""
    entries = await audit.list_entries(
        db, caller.workspace_id, before_id=cursor_id(cursor), limit=limit + 1
    )
    return link_next(request, response, entries, limit, lambda entry: entry.id)
