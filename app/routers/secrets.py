"""`/secrets`: store, list and delete secrets for tools. Values are never read back."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.http.deps import Caller, Db, ReadingDb, SecretKeys, Storage
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_text, link_next
from app.schemas.secrets import SecretCreate, SecretRead
from app.services.identity import audit
from app.services.tools import secrets
from app.services.tools.secrets import SecretUse
from app.services.usage.storage import ROW_BYTES

router = APIRouter(prefix="/secrets", tags=["tools"], route_class=EndpointRoute)

Name = Annotated[str, Path(max_length=64)]


@router.post("", response_model=SecretRead, status_code=HTTPStatus.CREATED)
async def put_secret(
    body: SecretCreate, db: Db, caller: Caller, keys: SecretKeys, storage: Storage
) -> SecretUse:
    """Store a secret; the same name again replaces its value and its hosts."""
    value = body.value.get_secret_value()
    await storage.require_room(caller.workspace_id, ROW_BYTES + len(value.encode()), db)
    stored, is_new = await secrets.put_secret(
        db, keys, caller.workspace_id, body.name, value, body.hosts
    )
    action = audit.Action.SECRET_CREATED if is_new else audit.Action.SECRET_REPLACED
    audit.record(db, caller, action, body.name, hosts=body.hosts)
    return await secrets.get_secret(db, stored)


@router.get("", response_model=list[SecretRead])
async def list_secrets(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[SecretUse]:
    """List secrets by name, without their values."""
    listed = await secrets.list_secrets(
        db, caller.workspace_id, after=cursor_text(cursor), limit=limit + 1
    )
    return link_next(request, response, listed, limit, lambda secret: secret.name)


@router.delete("/{name}", status_code=HTTPStatus.NO_CONTENT)
async def delete_secret(name: Name, db: Db, caller: Caller) -> None:
    """Delete a secret. Calls of tools that use it fail from then on."""
    await secrets.delete_secret(db, caller.workspace_id, name)
    audit.record(db, caller, audit.Action.SECRET_DELETED, name)
