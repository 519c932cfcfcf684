"""`/keys`: make, list, rotate and revoke keys. A key is shown once, when it is made."""

from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.core.limits import Limits
from app.models import ApiKey
from app.routers.deps import Caller, Db, ReadingDb
from app.routers.pages import Cursor, Limit, cursor_text, link_next
from app.routers.strict_route import StrictRoute
from app.schemas.identity import KeyCreate, KeyRead, KeyRotate, KeyWithSecret
from app.services.identity import Credential, api_keys, audit

router = APIRouter(prefix="/keys", tags=["keys"], route_class=StrictRoute)

KeyId = Annotated[str, Path(pattern="^[0-9A-Za-z]{8}$")]


@router.post("", status_code=HTTPStatus.CREATED)
async def create_key(body: KeyCreate, db: Db, caller: Caller) -> KeyWithSecret:
    """Make a key of this workspace. Its text is in this answer and nowhere else."""
    limits = Limits(**body.model_dump(include=set(Limits.__dataclass_fields__)))
    wanted = api_keys.NewKey(body.name, body.scopes, body.expires_at, limits)
    key, credential = await api_keys.create(db, caller, wanted)
    audit.record(db, caller, audit.Action.KEY_CREATED, key.id, name=key.name, scopes=key.scopes)
    return _with_secret(key, credential)


@router.get("", response_model=list[KeyRead])
async def list_keys(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[ApiKey]:
    """List the workspace's keys by id, revoked ones too."""
    keys = await api_keys.list_keys(db, caller, after_id=cursor_text(cursor), limit=limit + 1)
    return link_next(request, response, keys, limit, lambda key: key.id)


@router.get("/{key_id}", response_model=KeyRead)
async def get_key(key_id: KeyId, db: ReadingDb, caller: Caller) -> ApiKey:
    """Get one key, without its secret."""
    return await api_keys.get(db, caller, key_id)


@router.delete("/{key_id}", status_code=HTTPStatus.NO_CONTENT)
async def revoke_key(key_id: KeyId, db: Db, caller: Caller) -> None:
    """Revoke a key and the session tokens made with it: within a second on every server."""
    key = await api_keys.revoke(db, caller, key_id)
    audit.record(db, caller, audit.Action.KEY_REVOKED, key.id)


@router.post("/{key_id}/rotate")
async def rotate_key(key_id: KeyId, body: KeyRotate, db: Db, caller: Caller) -> KeyWithSecret:
    """Give a key a new secret; the one before it stays good for a while."""
    grace = timedelta(seconds=body.grace_seconds)
    key, credential = await api_keys.rotate(db, caller, key_id, grace)
    audit.record(db, caller, audit.Action.KEY_ROTATED, key.id, grace_seconds=body.grace_seconds)
    return _with_secret(key, credential)


def _with_secret(key: ApiKey, credential: Credential) -> KeyWithSecret:
    shown = KeyRead.model_validate(key).model_dump()
    return KeyWithSecret(**shown, key=credential.text)
