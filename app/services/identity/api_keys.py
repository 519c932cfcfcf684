"""Keys: made, listed, rotated, revoked. Nobody gives, or takes hold of, more than they have."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.limits import Limits
from app.core.security import Caller, CallerKind, Permission
from app.models import ApiKey, SessionToken, utc_now
from app.services.identity.credentials import Credential, CredentialKind, new_credential
from app.services.identity.errors import CannotGrant, KeyNotFound, KeyRevoked


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a key is to be; `expires_at` is `None` where it does not expire."""

    name: str
    scopes: Collection[Permission]
    expires_at: datetime | None
    limits: Limits


async def create(db: AsyncSession, caller: Caller, wanted: NewKey) -> tuple[ApiKey, Credential]:
    """Add a key to the caller's workspace. The second value has its text, which nothing keeps.

    What the caller's own key bounds, bounds the new one: expiry and limits that are left out
    are the caller's. Raises `CannotGrant` where more is asked for.
    """
    limits = _inherited(wanted.limits, caller.limits)
    expires_at = wanted.expires_at or _expiry(caller)
    _require_within(caller, wanted.scopes, expires_at, limits)
    credential = new_credential(CredentialKind.KEY)
    key = ApiKey(
        id=credential.id,
        workspace_id=caller.workspace_id,
        name=wanted.name,
        scopes=sorted(set(wanted.scopes)),
        secret_hash=credential.digest,
        created_by=caller.actor,
        expires_at=expires_at,
        **asdict(limits),
    )
    db.add(key)
    await db.flush()
    return key, credential


async def list_keys(
    db: AsyncSession, caller: Caller, *, after_id: str | None, limit: int
) -> Sequence[ApiKey]:
    """Return up to `limit` keys of the workspace with an id above `after_id`, revoked ones too."""
    return (
        await db.scalars(
            select(ApiKey)
            .where(
                ApiKey.workspace_id == caller.workspace_id,
                ApiKey.id > after_id if after_id else true(),
            )
            .order_by(ApiKey.id)
            .limit(limit)
        )
    ).all()


async def get(db: AsyncSession, caller: Caller, key_id: str, *, for_update: bool = False) -> ApiKey:
    """Load one key of the workspace, live or not. Raises `KeyNotFound`."""
    query = select(ApiKey).where(ApiKey.workspace_id == caller.workspace_id, ApiKey.id == key_id)
    key = await db.scalar(query.with_for_update() if for_update else query)
    if key is None:
        raise KeyNotFound("There is no such key.")
    return key


async def revoke(db: AsyncSession, caller: Caller, key_id: str) -> ApiKey:
    """End a key, and the session tokens made with it, for good; twice changes nothing.

    Raises `KeyNotFound`.
    """
    key = await get(db, caller, key_id, for_update=True)
    key.revoked_at = key.revoked_at or utc_now()
    await db.execute(delete(SessionToken).where(SessionToken.key_id == key.id))
    return key


async def rotate(
    db: AsyncSession, caller: Caller, key_id: str, grace: timedelta
) -> tuple[ApiKey, Credential]:
    """Give a key a new secret. The one before it is good for `grace` more, none before that.

    Id, scopes, expiry and limits stay. Raises `KeyNotFound`, `KeyRevoked`, or `CannotGrant`
    where the key may do more than the caller.
    """
    key = await get(db, caller, key_id, for_update=True)
    if key.revoked_at:
        raise KeyRevoked("A revoked key stays revoked: make a new one.")
    _require_within(caller, permissions_of(key), key.expires_at, limits_of(key))
    credential = new_credential(CredentialKind.KEY, key.id)
    now = utc_now()
    key.previous_secret_hash, key.previous_expires_at = key.secret_hash, now + grace
    key.secret_hash, key.rotated_at = credential.digest, now
    return key, credential


def permissions_of(key: ApiKey) -> frozenset[Permission]:
    """Return what the key may do; a name that this version does not know is nothing."""
    return frozenset(Permission(scope) for scope in key.scopes if scope in set(Permission))


def limits_of(key: ApiKey) -> Limits:
    """Return the key's own limits."""
    return Limits(
        key.requests_per_minute,
        key.concurrent_turns,
        key.upload_minutes_per_day,
        key.tokens_per_day,
        key.usd_per_day,
    )


def _expiry(caller: Caller) -> datetime | None:
    if caller.expires_at is None:
        return None
    return datetime.fromtimestamp(caller.expires_at, utc_now().tzinfo)


def _inherited(wanted: Limits, own: Limits) -> Limits:
    given = asdict(wanted)
    return Limits(
        **{
            name: bound if given[name] is None else given[name]
            for name, bound in asdict(own).items()
        }
    )


def _require_within(
    caller: Caller,
    scopes: Collection[Permission],
    expires_at: datetime | None,
    limits: Limits,
) -> None:
    if caller.kind is CallerKind.ADMIN:
        return
    if not caller.permissions.issuperset(scopes):
        raise CannotGrant("A key cannot give scopes that it does not have.")
    own_expiry = _expiry(caller)
    if own_expiry and (expires_at is None or expires_at > own_expiry):
        raise CannotGrant("A key cannot give more time than it has.")
    given = asdict(limits)
    for name, bound in asdict(caller.limits).items():
        if bound is not None and (given[name] is None or given[name] > bound):
            raise CannotGrant(f"A key cannot give a higher {name} than it has.")
