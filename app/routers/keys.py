"""`/keys`: create, list, change, rotate and revoke API keys."""

from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.core.limits import LIMIT_NAMES, KeyLimits, Limits
from app.http.deps import Accounts, Caller, Db, ReadingDb, Storage
from app.http.endpoint_route import EndpointRoute
from app.http.pagination import Cursor, Limit, cursor_text, link_next
from app.http.read_only import changeable
from app.models import ApiKey
from app.schemas.identity import (
    KeyCreate,
    KeyId,
    KeyRead,
    KeyRotate,
    KeyUpdate,
    KeyWithSecret,
    LimitsRequest,
)
from app.services.identity import Credential, api_keys, audit
from app.services.usage.storage import ROW_BYTES

router = APIRouter(prefix="/keys", tags=["keys"], route_class=EndpointRoute)


@router.post("", status_code=HTTPStatus.CREATED)
async def create_key(
    body: KeyCreate, db: Db, caller: Caller, accounts: Accounts, storage: Storage
) -> KeyWithSecret:
    """Create an API key in the workspace. The key itself is returned only in this response."""
    await storage.require_room(caller.workspace_id, ROW_BYTES, db)
    limits = KeyLimits(
        Limits(**body.model_dump(include=set(LIMIT_NAMES))), _user_limits(body.user_limits)
    )
    new_key = api_keys.NewKey(body.name, body.scopes, body.expires_at, limits)
    key, credential = await api_keys.create(db, caller, new_key, accounts.defaults)
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
    """List the workspace's keys by id, including revoked ones."""
    keys = await api_keys.list_keys(db, caller, after_id=cursor_text(cursor), limit=limit + 1)
    return link_next(request, response, keys, limit, lambda key: key.id)


@router.get("/{key_id}", response_model=KeyRead)
async def get_key(key_id: KeyId, db: ReadingDb, caller: Caller) -> ApiKey:
    """Get a key, without its secret."""
    return await api_keys.get(db, caller, key_id)


@router.patch("/{key_id}", response_model=KeyRead)
async def update_key(
    key_id: KeyId, body: KeyUpdate, db: Db, caller: Caller, accounts: Accounts
) -> ApiKey:
    """Change a key's name, scopes, limits or expiry, up to those of the key that asks for it.

    A key cannot outlive the key that made it; `"expires_at": null` is as long as that. Fields that
    only the server changes are let through where they are as they were.
    """
    current = await api_keys.get(db, caller, key_id)
    given = set(changeable(body, KeyRead.model_validate(current)))
    changes = api_keys.KeyChanges(
        name=body.name if "name" in given else None,
        scopes=body.scopes if "scopes" in given else None,
        limits=body.model_dump(include=given & set(LIMIT_NAMES)),
        user_limits=_user_limits(body.user_limits) if "user_limits" in given else None,
        expires_at=body.expires_at,
        changes_expiry="expires_at" in given,
    )
    key = await api_keys.update(db, caller, key_id, changes, accounts.defaults)
    audit.record(db, caller, audit.Action.KEY_UPDATED, key.id, fields=sorted(given))
    return key


@router.delete("/{key_id}", status_code=HTTPStatus.NO_CONTENT)
async def revoke_key(key_id: KeyId, db: Db, caller: Caller, accounts: Accounts) -> None:
    """Revoke a key, its session tokens and the keys created with it, everywhere within a second."""
    key = await api_keys.revoke(db, caller, key_id, accounts.defaults)
    audit.record(db, caller, audit.Action.KEY_REVOKED, key.id)


@router.post("/{key_id}/rotate")
async def rotate_key(
    key_id: KeyId, body: KeyRotate, db: Db, caller: Caller, accounts: Accounts
) -> KeyWithSecret:
    """Give a key a new secret; the old secret remains valid for `grace_seconds`."""
    grace = timedelta(seconds=body.grace_seconds)
    key, credential = await api_keys.rotate(db, caller, key_id, grace, accounts.defaults)
    audit.record(db, caller, audit.Action.KEY_ROTATED, key.id, grace_seconds=body.grace_seconds)
    return _with_secret(key, credential)


def _user_limits(given: LimitsRequest | None) -> Limits:
    return Limits(**given.model_dump()) if given else Limits()


def _with_secret(key: ApiKey, credential: Credential) -> KeyWithSecret:
    fields = KeyRead.model_validate(key).model_dump()
    return KeyWithSecret(**fields, key=credential.text)
