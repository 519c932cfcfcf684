"""From a key or token to its caller: looked up at most once a second, however many requests."""

import hmac
import time
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy import and_, select

from app.core.database import Database
from app.core.limits import DEFAULT_LIMITS
from app.core.security import Caller, CallerKind, Permission, Presented, unauthenticated
from app.core.tenancy import service_wide
from app.models import ApiKey, SessionToken, Workspace
from app.services.identity.api_keys import limits_of, permissions_of
from app.services.identity.credentials import CredentialKind
from app.services.identity.errors import WorkspaceNotFound
from app.services.identity.recent import Recent

TOKEN_PERMISSIONS = frozenset(
    (Permission.SESSIONS_READ, Permission.TURNS_READ, Permission.TURNS_WRITE)
)


@dataclass(frozen=True, slots=True)
class _Found:
    """A key or token that is there: which secrets open it, until when, and as whom."""

    secrets: tuple[tuple[bytes, float | None], ...]
    caller: Caller


class Callers:
    """Knows keys and session tokens; one instance serves the whole process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: Recent[tuple[str, str], _Found | None] = Recent()
        self._workspaces: Recent[UUID, bool] = Recent()

    async def of(self, presented: Presented) -> Caller:
        """Return whom a key or token stands for.

        Raises `Unauthenticated` where it is unknown, wrong, revoked or expired, always with the
        same words; and `StorageUnavailable`.
        """
        found = await self._found.get(
            (presented.prefix, presented.id), lambda: self._look_up(presented)
        )
        # Something is compared in any case: how long it takes tells nothing.
        secrets = found.secrets if found else ((b"\0" * 32, None),)
        now = time.time()
        for digest, expires_at in secrets:
            is_same = hmac.compare_digest(digest, presented.digest)
            if found and is_same and (expires_at is None or now < expires_at):
                return replace(found.caller, credential=presented, expires_at=expires_at)
        raise unauthenticated()

    async def require_still(self, caller: Caller) -> None:
        """Look again whether the caller may still be here. Raises `Unauthenticated`."""
        if caller.credential:
            await self.of(caller.credential)
        elif caller.expires_at is not None and time.time() >= caller.expires_at:
            raise unauthenticated()

    async def require_workspace(self, workspace_id: UUID) -> None:
        """Raise `WorkspaceNotFound` where there is none."""

        async def is_there() -> bool:
            async with self._database.reading() as db:
                return await db.get(Workspace, workspace_id) is not None

        if not await self._workspaces.get(workspace_id, is_there):
            raise WorkspaceNotFound("There is no such workspace.")

    async def _look_up(self, presented: Presented) -> _Found | None:
        with service_wide():  # whose it is comes out of it
            if presented.prefix == CredentialKind.KEY:
                return await self._look_up_key(presented.id)
            return await self._look_up_token(presented.id)

    async def _look_up_key(self, key_id: str) -> _Found | None:
        async with self._database.reading() as db:
            key = await db.get(ApiKey, key_id)
        if key is None or key.revoked_at:
            return None
        expires_at = key.expires_at.timestamp() if key.expires_at else None
        caller = Caller(
            key.workspace_id,
            CallerKind.KEY,
            permissions_of(key),
            key_id=key.id,
            limits=limits_of(key),
            expires_at=expires_at,
        )
        secrets = [(key.secret_hash, expires_at)]
        if key.previous_secret_hash and key.previous_expires_at:
            previous_end = key.previous_expires_at.timestamp()
            secrets.append(
                (key.previous_secret_hash, min(previous_end, expires_at or previous_end))
            )
        return _Found(tuple(secrets), caller)

    async def _look_up_token(self, token_id: str) -> _Found | None:
        async with self._database.reading() as db:
            row = (
                await db.execute(
                    select(SessionToken, ApiKey)
                    .outerjoin(
                        ApiKey,
                        and_(
                            ApiKey.id == SessionToken.key_id,
                            ApiKey.workspace_id == SessionToken.workspace_id,
                        ),
                    )
                    .where(SessionToken.id == token_id)
                )
            ).one_or_none()
        return _found_token(row[0], row[1]) if row else None


def _found_token(token: SessionToken, key: ApiKey | None) -> _Found | None:
    """Return what a token opens; `key` is the one that it was made with, where that was a key."""
    if token.key_id and (key is None or key.revoked_at):
        return None
    expires_at = token.expires_at.timestamp()
    if key and key.expires_at:
        expires_at = min(expires_at, key.expires_at.timestamp())
    caller = Caller(
        token.workspace_id,
        CallerKind.SESSION_TOKEN,
        TOKEN_PERMISSIONS,
        key_id=token.key_id,
        session_id=token.session_id,
        limits=limits_of(key) if key else DEFAULT_LIMITS,
        expires_at=expires_at,
    )
    return _Found(((token.secret_hash, expires_at),), caller)
