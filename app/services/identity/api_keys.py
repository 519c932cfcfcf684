"""Create, list, change, rotate and revoke API keys.

A caller can do none of that with a key that may do more than the caller's own key.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.limits import DEFAULT_LIMITS, LIMIT_NAMES, NO_LIMITS, KeyLimits, Limits
from app.core.security import Caller, CallerKind, Permission
from app.models import ApiKey, SessionToken, utc_now
from app.services.identity.credentials import Credential, CredentialKind, new_credential
from app.services.identity.errors import CannotGrant, KeyNotFound, KeyRevoked

_NO_DEFAULTS = KeyLimits(NO_LIMITS, NO_LIMITS)
_MOST_ANCESTORS = 8


@dataclass(frozen=True, slots=True)
class NewKey:
    """The properties of a key to create; `expires_at` is `None` where it does not expire."""

    name: str
    scopes: Collection[Permission]
    expires_at: datetime | None
    limits: KeyLimits


@dataclass(frozen=True, slots=True)
class KeyChanges:
    """Changes of a key; `None` leaves a property as it is."""

    name: str | None = None
    scopes: Collection[Permission] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """By the names of `Limits`; a limit that is `None` is set back to the default."""
    user_limits: Limits | None = None
    expires_at: datetime | None = None
    changes_expiry: bool = False
    """`expires_at` of `None` is then no expiry but that of the keys that it descends from."""


async def create(
    db: AsyncSession, caller: Caller, new_key: NewKey, defaults: KeyLimits = _NO_DEFAULTS
) -> tuple[ApiKey, Credential]:
    """Insert a key into the caller's workspace; return it with its text, which is not stored.

    Expiry and limits that are omitted are inherited from the caller's own key. The key is its
    child: it ends with it, and spends its budgets, too. Raises `CannotGrant` where the new key
    would exceed the caller's scopes, expiry or limits; `defaults` are those of the settings.
    """
    if len(caller.ancestors) >= _MOST_ANCESTORS:
        raise CannotGrant("A key cannot make keys where as many made one another: use the first.")
    limits = new_key.limits.with_defaults(_own_limits(caller))
    expires_at = new_key.expires_at or _expiry(caller)
    _require_within(caller, new_key.scopes, expires_at, limits, defaults)
    credential = new_credential(CredentialKind.KEY)
    key = ApiKey(
        id=credential.id,
        workspace_id=caller.workspace_id,
        name=new_key.name,
        scopes=sorted(set(new_key.scopes)),
        secret_hash=credential.digest,
        created_by=caller.actor,
        parent_id=caller.key_id,
        expires_at=expires_at,
        user_limits=_stored(limits.user),
        **asdict(limits.own),
    )
    db.add(key)
    await db.flush()
    return key, credential


async def list_keys(
    db: AsyncSession, caller: Caller, *, after_id: str | None, limit: int
) -> Sequence[ApiKey]:
    """Return up to `limit` keys with an id above `after_id`, revoked keys included."""
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
    """Return one key of the workspace, revoked or not. Raises `KeyNotFound`."""
    query = select(ApiKey).where(ApiKey.workspace_id == caller.workspace_id, ApiKey.id == key_id)
    key = await db.scalar(query.with_for_update() if for_update else query)
    if key is None:
        raise KeyNotFound("No key with this id exists in this workspace.")
    return key


async def revoke(
    db: AsyncSession, caller: Caller, key_id: str, defaults: KeyLimits = _NO_DEFAULTS
) -> ApiKey:
    """Revoke a key and its descendants permanently, and delete their session tokens.

    Repeating it changes nothing. Raises `KeyNotFound`, or `CannotGrant` where the key may do more
    than the caller.
    """
    key = await get(db, caller, key_id, for_update=True)
    if not key.revoked_at and key.id != caller.key_id:
        _require_not_stronger(caller, key, defaults)
    now = utc_now()
    generation = [key]
    while generation:
        for each in generation:
            each.revoked_at = each.revoked_at or now
        ids = [each.id for each in generation]
        await db.execute(delete(SessionToken).where(SessionToken.key_id.in_(ids)))
        children = select(ApiKey).where(
            ApiKey.workspace_id == caller.workspace_id, ApiKey.parent_id.in_(ids)
        )
        generation = (await db.scalars(children.with_for_update())).all()
    return key


async def update(
    db: AsyncSession,
    caller: Caller,
    key_id: str,
    changes: KeyChanges,
    defaults: KeyLimits = _NO_DEFAULTS,
) -> ApiKey:
    """Change a key's name, scopes, limits and expiry, within what the caller may do itself.

    Raises `KeyNotFound`, `KeyRevoked`, or `CannotGrant` where the key may do more than the caller,
    before or afterwards, or would outlive a key that it descends from.
    """
    key = await get(db, caller, key_id, for_update=True)
    if key.revoked_at:
        raise KeyRevoked("A revoked key cannot be changed: create a new key.")
    end = await _end_of_ancestors(db, key)
    _require_not_stronger(caller, key, defaults, end)
    if changes.name is not None:
        key.name = changes.name
    if changes.scopes is not None:
        key.scopes = sorted(set(changes.scopes))
    for name, limit in changes.limits.items():
        setattr(key, name, limit)
    if changes.user_limits is not None:
        key.user_limits = _stored(changes.user_limits)
    if changes.changes_expiry:
        expires_at = changes.expires_at or end
        if end and expires_at and expires_at > end:
            raise CannotGrant(
                f"A key cannot outlive the key that made it, which expires at {end.isoformat()}."
            )
        key.expires_at = expires_at
    _require_not_stronger(caller, key, defaults, end)
    return key


async def rotate(
    db: AsyncSession,
    caller: Caller,
    key_id: str,
    grace: timedelta,
    defaults: KeyLimits = _NO_DEFAULTS,
) -> tuple[ApiKey, Credential]:
    """Give a key a new secret; the previous secret stays valid for `grace`, older ones do not.

    Id, scopes, expiry and limits do not change. Raises `KeyNotFound`, `KeyRevoked`, or
    `CannotGrant` where the key may do more than the caller.
    """
    key = await get(db, caller, key_id, for_update=True)
    if key.revoked_at:
        raise KeyRevoked("A revoked key cannot be rotated: create a new key.")
    _require_not_stronger(caller, key, defaults)
    credential = new_credential(CredentialKind.KEY, key.id)
    now = utc_now()
    key.previous_secret_hash, key.previous_expires_at = key.secret_hash, now + grace
    key.secret_hash, key.rotated_at = credential.digest, now
    return key, credential


async def _end_of_ancestors(db: AsyncSession, key: ApiKey) -> datetime | None:
    """Return the earliest expiry of the keys that `key` descends from; `None` if none expires."""
    ends: list[datetime] = []
    while key.parent_id:
        key = await db.get_one(ApiKey, key.parent_id)
        if key.expires_at:
            ends.append(key.expires_at)
    return min(ends, default=None)


def permissions_of(key: ApiKey) -> frozenset[Permission]:
    """Return the key's permissions; scope names that this version does not know are ignored."""
    return frozenset(Permission(scope) for scope in key.scopes if scope in set(Permission))


def limits_of(key: ApiKey) -> KeyLimits:
    """Return the limits stored with the key."""
    stored = key.user_limits or {}
    user = Limits(**{name: stored.get(name) for name in LIMIT_NAMES})
    return KeyLimits(Limits.of_row(key), user)


def _stored(limits: Limits) -> dict[str, Any] | None:
    given = {name: limit for name, limit in asdict(limits).items() if limit is not None}
    return given or None


def _own_limits(caller: Caller) -> KeyLimits:
    return KeyLimits(caller.limits, caller.user_limits or DEFAULT_LIMITS)


def _expiry(caller: Caller) -> datetime | None:
    if caller.expires_at is None:
        return None
    return datetime.fromtimestamp(caller.expires_at, utc_now().tzinfo)


def _require_not_stronger(
    caller: Caller, key: ApiKey, defaults: KeyLimits, end: datetime | None = None
) -> None:
    """Raise `CannotGrant` where `key`, which ends at `end` at the latest, may do more."""
    ends = [moment for moment in (key.expires_at, end) if moment]
    expires_at = min(ends, default=None)
    _require_within(caller, permissions_of(key), expires_at, limits_of(key), defaults)


def _require_within(
    caller: Caller,
    scopes: Collection[Permission],
    expires_at: datetime | None,
    limits: KeyLimits,
    defaults: KeyLimits,
) -> None:
    if caller.kind is CallerKind.ADMIN:
        return
    if not caller.permissions.issuperset(scopes):
        raise CannotGrant("A key cannot grant scopes that it does not have.")
    own_expiry = _expiry(caller)
    if own_expiry and (expires_at is None or expires_at > own_expiry):
        raise CannotGrant("A key cannot grant a later expiry than its own.")
    requested = limits.with_defaults(defaults)
    own = _own_limits(caller).with_defaults(defaults)
    ancestors = [bound.with_defaults(defaults.own) for _, bound in caller.ancestors]
    for bounds in (own.own, *ancestors):
        if name := requested.own.first_above(bounds):
            bound = getattr(bounds, name)
            raise CannotGrant(
                f"A key cannot grant a higher {name} than its own, {bound}; 0 is no limit."
            )
    if name := requested.user.first_above(own.user):
        raise CannotGrant(
            f"A key cannot grant a higher user_limits.{name} than its own, "
            f"{getattr(own.user, name)}; 0 is no limit."
        )
