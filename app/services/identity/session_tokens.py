"""Create session tokens: short-lived credentials for one session, for use in browsers."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import SessionToken, utc_now
from app.services import crud
from app.services.identity.credentials import Credential, CredentialKind, new_credential

DEFAULT_LIFE = timedelta(minutes=15)
LONGEST_LIFE = timedelta(minutes=60)


async def create(
    db: AsyncSession, caller: Caller, session_id: UUID, life: timedelta
) -> tuple[SessionToken, Credential]:
    """Insert a token for a session; delete tokens that expired more than an hour ago.

    The token also ends when the caller's key expires or is revoked. Raises `SessionNotFound`.
    """
    await crud.keep_from_deletion(db, caller, session_id)
    now = utc_now()
    await db.execute(delete(SessionToken).where(SessionToken.expires_at < now - LONGEST_LIFE))
    credential = new_credential(CredentialKind.SESSION_TOKEN)
    token = SessionToken(
        id=credential.id,
        workspace_id=caller.workspace_id,
        session_id=session_id,
        key_id=caller.key_id,
        secret_hash=credential.digest,
        created_at=now,
        expires_at=now + life,
    )
    db.add(token)
    await db.flush()
    return token, credential
