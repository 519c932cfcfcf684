"""Look up the caller of an API key or session token, cached for half a second."""

import hmac
import time
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.database.workspace_scope import all_workspaces
from app.core.limits import KeyLimits, Limits
from app.core.security import (
    AdminKey,
    Caller,
    CallerKind,
    Permission,
    PresentedCredential,
    unauthenticated,
)
from app.models import ApiKey, ClientSecret, ConsoleSession, Session, SessionToken, Workspace
from app.services.identity.api_keys import limits_of, permissions_of
from app.services.identity.credentials import CredentialKind
from app.services.identity.errors import WorkspaceNotFound
from app.services.identity.ttl_cache import TtlCache

TOKEN_PERMISSIONS = frozenset(
    (
        Permission.SESSIONS_READ,
        Permission.TURNS_READ,
        Permission.TURNS_WRITE,
        Permission.FILES_READ,
        Permission.FILES_WRITE,
    )
)


SECRET_PERMISSIONS = frozenset((Permission.TURNS_WRITE,))


@dataclass(frozen=True, slots=True)
class _StoredCredential:
    """A stored key or token: its valid secrets, each with its expiry, and its caller."""

    secrets: tuple[tuple[bytes, float | None], ...]
    caller: Caller


class CallerLookup:
    """Authenticates API keys and session tokens; one instance serves the whole process."""

    def __init__(self, database: Database, admin_key: AdminKey | None = None) -> None:
        """`admin_key` is the one whose console sessions are accepted."""
        self._database = database
        self._admin_key = admin_key
        self._credentials: TtlCache[tuple[str, str], _StoredCredential | None] = TtlCache()
        self._known_workspaces: TtlCache[UUID, bool] = TtlCache()

    async def of(self, presented: PresentedCredential) -> Caller:
        """Return the caller of a key or token.

        Raises `Unauthenticated`, with the same text for an unknown, wrong, revoked or expired
        credential, and `StorageUnavailable`.
        """
        stored = await self._credentials.get(
            (presented.prefix, presented.id), lambda: self._look_up(presented)
        )
        # An unknown credential is compared as well, so that the response time reveals nothing.
        secrets = stored.secrets if stored else ((b"\0" * 32, None),)
        now = time.time()
        for digest, expires_at in secrets:
            is_same = hmac.compare_digest(digest, presented.digest)
            if stored and is_same and (expires_at is None or now < expires_at):
                return replace(stored.caller, credential=presented, expires_at=expires_at)
            if stored and is_same:
                raise unauthenticated(f"{presented.prefix}_{presented.id} has expired")
        named = f"{presented.prefix}_{presented.id}"
        raise unauthenticated(
            f"{named} has another secret" if stored else f"{named} is unknown, revoked or expired"
        )

    async def require_valid(self, caller: Caller) -> None:
        """Check again that the caller's credential is valid. Raises `Unauthenticated`.

        What a client secret has opened outlives it, but not the key that made it.
        """
        if caller.kind is CallerKind.CLIENT_SECRET:
            if caller.key_id and not await self._key_is_valid(caller.key_id):
                raise unauthenticated("the key of the client secret is revoked or expired")
        elif caller.credential:
            await self.of(caller.credential)
        elif caller.expires_at is not None and time.time() >= caller.expires_at:
            raise unauthenticated("the token has expired")

    async def require_workspace(self, workspace_id: UUID) -> None:
        """Raise `WorkspaceNotFound` where the workspace does not exist."""

        async def exists() -> bool:
            async with self._database.looking_up() as db:
                return await db.get(Workspace, workspace_id) is not None

        if not await self._known_workspaces.get(workspace_id, exists):
            raise WorkspaceNotFound("No workspace with this id exists.")

    async def _look_up(self, presented: PresentedCredential) -> _StoredCredential | None:
        with all_workspaces():  # the row names its workspace
            if presented.prefix == CredentialKind.KEY:
                return await self._look_up_key(presented.id)
            if presented.prefix == CredentialKind.CLIENT_SECRET:
                return await self._look_up_client_secret(presented.id)
            if presented.prefix == CredentialKind.CONSOLE_SESSION:
                return await self._look_up_console_session(presented.id)
            return await self._look_up_token(presented.id)

    async def _look_up_key(self, key_id: str) -> _StoredCredential | None:
        async with self._database.looking_up() as db:
            key = await db.get(ApiKey, key_id)
            rights = await _rights(db, key) if key else None
        if key is None or rights is None:
            return None
        caller = Caller(
            key.workspace_id,
            CallerKind.KEY,
            rights.permissions,
            key_id=key.id,
            limits=limits_of(key).own,
            user_limits=limits_of(key).user,
            ancestors=rights.ancestors,
            expires_at=rights.expires_at,
        )
        secrets = [(key.secret_hash, rights.expires_at)]
        if key.previous_secret_hash and key.previous_expires_at:
            previous_end = key.previous_expires_at.timestamp()
            secrets.append((key.previous_secret_hash, _earlier(previous_end, rights.expires_at)))
        return _StoredCredential(tuple(secrets), caller)

    async def _look_up_console_session(self, session_id: str) -> _StoredCredential | None:
        async with self._database.looking_up() as db:
            session = await db.get(ConsoleSession, session_id)
        if session is None:
            return None
        expires_at = session.expires_at.timestamp()
        if session.key_id is None:
            if self._admin_key is None or not self._admin_key.has_digest(session.credential_hash):
                return None
            caller = Caller(session.workspace_id, expires_at=expires_at)
            return _StoredCredential(((session.secret_hash, expires_at),), caller)
        of_key = await self._look_up_key(session.key_id)
        if of_key is None or session.workspace_id != of_key.caller.workspace_id:
            return None
        for digest, key_expires_at in of_key.secrets:
            if hmac.compare_digest(digest, session.credential_hash):
                ends_at = _earlier(expires_at, key_expires_at)
                return _StoredCredential(((session.secret_hash, ends_at),), of_key.caller)
        return None

    async def _look_up_client_secret(self, secret_id: str) -> _StoredCredential | None:
        async with self._database.looking_up() as db:
            secret = await db.get(ClientSecret, secret_id)
            key = await db.get(ApiKey, secret.key_id) if secret and secret.key_id else None
            rights = await _rights(db, key) if key else None
        if secret is None or (secret.key_id and rights is None):
            return None
        limits = limits_of(key) if key else KeyLimits()
        expires_at = secret.expires_at.timestamp()
        caller = Caller(
            secret.workspace_id,
            CallerKind.CLIENT_SECRET,
            SECRET_PERMISSIONS & rights.permissions if rights else SECRET_PERMISSIONS,
            key_id=secret.key_id,
            user_id=secret.user_id,
            session_id=secret.session_id,
            limits=limits.own,
            user_limits=limits.user,
            ancestors=rights.ancestors if rights else (),
            expires_at=expires_at,
        )
        ends_at = _earlier(expires_at, rights.expires_at if rights else None)
        return _StoredCredential(((secret.secret_hash, ends_at),), caller)

    async def _key_is_valid(self, key_id: str) -> bool:
        with all_workspaces():
            found = await self._look_up_key(key_id)
        now = time.time()
        return found is not None and any(end is None or now < end for _, end in found.secrets)

    async def _look_up_token(self, token_id: str) -> _StoredCredential | None:
        async with self._database.looking_up() as db:
            row = (
                await db.execute(
                    select(SessionToken, Session.user_id)
                    .join(
                        Session,
                        and_(
                            Session.workspace_id == SessionToken.workspace_id,
                            Session.id == SessionToken.session_id,
                        ),
                    )
                    .where(SessionToken.id == token_id)
                )
            ).one_or_none()
            if row is None:
                return None
            token, user_id = row
            key = await db.get(ApiKey, token.key_id) if token.key_id else None
            rights = await _rights(db, key) if key else None
        if token.key_id and rights is None:
            return None
        return _stored_token(token, user_id, key, rights)


@dataclass(frozen=True, slots=True)
class _Rights:
    """What a key may do, within what the keys may that it descends from."""

    permissions: frozenset[Permission]
    expires_at: float | None
    ancestors: tuple[tuple[str, Limits], ...]


async def _rights(db: AsyncSession, key: ApiKey) -> _Rights | None:
    """Return the rights of a key; `None` where it, or a key that it descends from, is revoked."""
    permissions, expires_at = permissions_of(key), _expiry(key)
    ancestors: list[tuple[str, Limits]] = []
    descendant = key
    while descendant.parent_id:
        parent = await db.get(ApiKey, descendant.parent_id)
        if parent is None or parent.workspace_id != key.workspace_id or parent.revoked_at:
            return None
        permissions &= permissions_of(parent)
        expires_at = _earlier(expires_at, _expiry(parent))
        ancestors.append((parent.id, limits_of(parent).own))
        descendant = parent
    if key.revoked_at:
        return None
    return _Rights(permissions, expires_at, tuple(ancestors))


def _expiry(key: ApiKey) -> float | None:
    return key.expires_at.timestamp() if key.expires_at else None


def _earlier(first: float | None, second: float | None) -> float | None:
    times = [each for each in (first, second) if each is not None]
    return min(times, default=None)


def _stored_token(
    token: SessionToken, user_id: str | None, key: ApiKey | None, rights: _Rights | None
) -> _StoredCredential:
    """Return the stored token of a session of `user_id`; `key` made it, if one did."""
    expires_at = _earlier(token.expires_at.timestamp(), rights.expires_at if rights else None)
    limits = limits_of(key) if key else KeyLimits()
    caller = Caller(
        token.workspace_id,
        CallerKind.SESSION_TOKEN,
        TOKEN_PERMISSIONS & rights.permissions if rights else TOKEN_PERMISSIONS,
        key_id=token.key_id,
        session_id=token.session_id,
        session_user_id=user_id,
        limits=limits.own,
        user_limits=limits.user,
        ancestors=rights.ancestors if rights else (),
        expires_at=expires_at,
    )
    return _StoredCredential(((token.secret_hash, expires_at),), caller)
