"""Create client secrets: short-lived credentials with which browsers open lines of live voice."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller, CallerKind, Forbidden, Permission
from app.models import ClientSecret, utc_now
from app.services import crud
from app.services.identity.credentials import Credential, CredentialKind, new_credential

DEFAULT_SECONDS, SHORTEST_SECONDS, LONGEST_SECONDS = 600, 10, 7200
LONGEST_CONFIGURATION_BYTES = 64 << 10


async def create(  # noqa: PLR0913  # columns of the row
    db: AsyncSession,
    caller: Caller,
    life: timedelta,
    configuration: dict[str, Any],
    *,
    session_id: UUID | None = None,
    user_id: str | None = None,
) -> tuple[ClientSecret, Credential]:
    """Insert a secret whose lines have `configuration`; delete those that have expired.

    With `session_id` they are of that session, else each opens one of its own, which belongs to
    the end user `user_id`. They end with the caller's key. Raises `SessionNotFound`, and
    `Forbidden` for a key that must not make sessions.
    """
    if session_id is not None:
        await crud.keep_from_deletion(db, caller, session_id)
    elif Permission.SESSIONS_WRITE not in caller.permissions:
        raise Forbidden(
            f"Lines without a session make one, which needs the scope "
            f"`{Permission.SESSIONS_WRITE}`."
        )
    now = utc_now()
    await db.execute(
        delete(ClientSecret).where(
            ClientSecret.workspace_id == caller.workspace_id, ClientSecret.expires_at < now
        )
    )
    credential = new_credential(CredentialKind.CLIENT_SECRET)
    secret = ClientSecret(
        id=credential.id,
        workspace_id=caller.workspace_id,
        key_id=caller.key_id,
        session_id=session_id,
        user_id=user_id,
        configuration=configuration,
        secret_hash=credential.digest,
        created_at=now,
        expires_at=now + life,
    )
    db.add(secret)
    await db.flush()
    return secret, credential


async def configuration_of(db: AsyncSession, caller: Caller) -> dict[str, Any]:
    """Return the settings of the caller's lines; none for a caller without a client secret."""
    if caller.kind is not CallerKind.CLIENT_SECRET or caller.credential is None:
        return {}
    secret = await db.get(ClientSecret, caller.credential.id)
    return dict(secret.configuration) if secret else {}
