"""Session tokens: what a browser may hold, for one session and some minutes."""

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
    """Make a token for a session. Tokens that have ended are removed by the way.

    Its life ends with that of the caller's key at the latest. Raises `SessionNotFound`.
    """
    await crud.get_session(db, caller, session_id)
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
