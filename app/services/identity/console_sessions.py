"""Console sessions: a browser signs in with a key once, and has a cookie from then on."""

from datetime import timedelta

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import ConsoleSession, utc_now
from app.services.identity.credentials import Credential, CredentialKind, new_credential

LIFE = timedelta(hours=12)


async def create(
    db: AsyncSession, caller: Caller, credential_hash: bytes
) -> tuple[ConsoleSession, Credential]:
    """Insert a session with the rights of the caller's key; delete those that have expired.

    `credential_hash` is the SHA-256 of the key, with which the session ends.
    """
    now = utc_now()
    await db.execute(
        delete(ConsoleSession).where(
            ConsoleSession.workspace_id == caller.workspace_id, ConsoleSession.expires_at < now
        )
    )
    credential = new_credential(CredentialKind.CONSOLE_SESSION)
    session = ConsoleSession(
        id=credential.id,
        workspace_id=caller.workspace_id,
        key_id=caller.key_id,
        secret_hash=credential.digest,
        credential_hash=credential_hash,
        created_at=now,
        expires_at=now + LIFE,
    )
    db.add(session)
    await db.flush()
    return session, credential


async def end(db: AsyncSession, caller: Caller) -> None:
    """Delete the caller's console session, if it has one."""
    presented = caller.credential
    if presented is None or presented.prefix != CredentialKind.CONSOLE_SESSION:
        return
    await db.execute(
        delete(ConsoleSession).where(
            ConsoleSession.workspace_id == caller.workspace_id, ConsoleSession.id == presented.id
        )
    )
