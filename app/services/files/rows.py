"""Read and write the rows of files.

Each function works in the caller's transaction `db` and never commits. Rows of another workspace,
and what the caller may not see, are treated as absent.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    CursorResult,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer

from app.core.security import Caller
from app.models import Session, SessionFile, StoredFile, utc_now
from app.services.files.errors import FileInUse, file_not_found

UNUSED_KEPT = timedelta(hours=24)
_EXPIRED_AT_ONCE, _IDS_AT_ONCE = 100, 10_000


class ExpiredFile(NamedTuple):
    """A file whose row is to be deleted."""

    workspace_id: UUID
    id: UUID
    in_store: bool


def _link(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(
        SessionFile.workspace_id == StoredFile.workspace_id,
        SessionFile.file_id == StoredFile.id,
        *conditions,
    )


def _visible(caller: Caller) -> ColumnElement[bool]:
    """Return the condition for what the caller uploaded, and what is in the caller's sessions."""
    of_workspace = and_(StoredFile.workspace_id == caller.workspace_id, StoredFile.is_stored)
    if caller.sees_all_sessions:
        return of_workspace
    own = [StoredFile.workspace_id == caller.workspace_id]
    in_session = [SessionFile.workspace_id == caller.workspace_id]
    if caller.user_id is not None:
        own.append(StoredFile.user_id == caller.user_id)
        in_session.append(Session.user_id == caller.user_id)
    if caller.session_id is not None:
        own.append(StoredFile.session_id == caller.session_id)
        in_session.append(SessionFile.session_id == caller.session_id)
    of_link = and_(
        Session.workspace_id == SessionFile.workspace_id, Session.id == SessionFile.session_id
    )
    # Two lists of what is the caller's: an OR would read all files of the workspace.
    used = select(SessionFile.file_id).join(Session, of_link).where(*in_session)
    return and_(of_workspace, StoredFile.id.in_(union_all(select(StoredFile.id).where(*own), used)))


async def list_files(
    db: AsyncSession, caller: Caller, *, before_id: UUID | None, limit: int
) -> Sequence[StoredFile]:
    """Return up to `limit` files older than `before_id`, newest first."""
    query = select(StoredFile).where(
        _visible(caller), StoredFile.id < before_id if before_id else true()
    )
    return (await db.scalars(query.order_by(StoredFile.id.desc()).limit(limit))).all()


async def get_file(
    db: AsyncSession, caller: Caller, file_id: UUID, *, with_data: bool = False
) -> StoredFile:
    """Return one file, with its bytes if they are in the database. Raises `FileNotFound`."""
    query = select(StoredFile).where(_visible(caller), StoredFile.id == file_id)
    if with_data:
        query = query.options(undefer(StoredFile.data))
    file = await db.scalar(query)
    if file is None:
        raise file_not_found()
    return file


async def find_files(
    db: AsyncSession, caller: Caller, file_ids: Sequence[UUID]
) -> dict[UUID, StoredFile]:
    """Return the files of these ids that the caller sees."""
    query = select(StoredFile).where(_visible(caller), StoredFile.id.in_(file_ids))
    return {UUID(str(file.id)): file for file in await db.scalars(query)}


async def list_of_session(
    db: AsyncSession, workspace_id: UUID, session_id: UUID
) -> Sequence[StoredFile]:
    """Return the files that a session uses, the oldest first."""
    used = and_(
        SessionFile.workspace_id == StoredFile.workspace_id,
        SessionFile.file_id == StoredFile.id,
        SessionFile.session_id == session_id,
    )
    query = select(StoredFile).join(SessionFile, used)
    of_workspace = query.where(StoredFile.workspace_id == workspace_id, StoredFile.is_stored)
    return (await db.scalars(of_workspace.order_by(StoredFile.id))).all()


async def expire_file(db: AsyncSession, caller: Caller, file_id: UUID) -> None:
    """Hide a file from everybody, to be deleted. Raises `FileNotFound` and `FileInUse`."""
    await get_file(db, caller, file_id)
    changed: CursorResult[Any] = await db.execute(  # pyright: ignore[reportAssignmentType]
        update(StoredFile)
        .where(
            StoredFile.workspace_id == caller.workspace_id,
            StoredFile.id == file_id,
            StoredFile.expires_at.is_not(None),
        )
        .values(is_stored=False, expires_at=utc_now())
    )
    if not changed.rowcount:
        raise FileInUse("A message uses the file: it is deleted with the session.")


async def files_of_session(db: AsyncSession, workspace_id: UUID, session_id: UUID) -> list[UUID]:
    """Return and lock the files that a session uses, before it is deleted."""
    used = select(SessionFile.file_id).where(
        SessionFile.workspace_id == workspace_id, SessionFile.session_id == session_id
    )
    # Locked, for another session that uses one of them may be deleted at the same time.
    query = select(StoredFile.id).where(
        StoredFile.workspace_id == workspace_id, StoredFile.id.in_(used)
    )
    return list(await db.scalars(query.order_by(StoredFile.id).with_for_update()))


async def share_files(
    db: AsyncSession, workspace_id: UUID, session_id: UUID, copy_id: UUID
) -> None:
    """Let a copy of a session, which the caller has locked, use the same files."""
    used = select(
        SessionFile.workspace_id, literal(copy_id, SessionFile.session_id.type), SessionFile.file_id
    ).where(SessionFile.workspace_id == workspace_id, SessionFile.session_id == session_id)
    names = ["workspace_id", "session_id", "file_id"]
    await db.execute(insert(SessionFile).from_select(names, used))


async def expire_unused(
    db: AsyncSession, workspace_id: UUID, session_id: UUID, used_ids: Sequence[UUID]
) -> None:
    """Hide what nobody uses any more of a deleted session: its files, and its token's uploads.

    Bytes in the database are deleted at once.
    """
    unused = and_(StoredFile.workspace_id == workspace_id, ~_link())
    await expire(db, and_(unused, StoredFile.session_id == session_id))
    for start in range(0, len(used_ids), _IDS_AT_ONCE):
        ids = used_ids[start : start + _IDS_AT_ONCE]
        await expire(db, and_(unused, StoredFile.id.in_(ids)))


async def expire(db: AsyncSession, condition: ColumnElement[bool]) -> None:
    """Hide files from everybody, to be deleted; those in the database are deleted at once."""
    await db.execute(
        delete(StoredFile)
        .where(condition, StoredFile.in_store.is_(False))
        .execution_options(synchronize_session=False)
    )
    await db.execute(
        update(StoredFile)
        .where(condition)
        .values(is_stored=False, expires_at=utc_now())
        .execution_options(synchronize_session=False)
    )


async def count_files(db: AsyncSession, workspace_id: UUID, user_id: str) -> int:
    """Return how many files an end user has."""
    query = select(func.count()).select_from(StoredFile)
    of_user = query.where(StoredFile.workspace_id == workspace_id, StoredFile.user_id == user_id)
    return await db.scalar(of_user.where(StoredFile.is_stored)) or 0


async def forget_user(db: AsyncSession, workspace_id: UUID, user_id: str, kept_as: str) -> None:
    """Delete an end user's files; what sessions of others use is theirs no more.

    The user's own sessions are deleted before.
    """
    of_user = and_(StoredFile.workspace_id == workspace_id, StoredFile.user_id == user_id)
    await expire(db, and_(of_user, ~_link()))
    await db.execute(
        update(StoredFile)
        .where(of_user)
        .values(user_id=kept_as)
        .execution_options(synchronize_session=False)
    )


async def take_expired(db: AsyncSession) -> list[ExpiredFile]:
    """Return files whose time is over; those in the store are hidden, the others deleted."""
    due = (
        select(StoredFile.workspace_id, StoredFile.id, StoredFile.in_store)
        .where(StoredFile.expires_at < utc_now(), ~_link())
        .order_by(StoredFile.expires_at)
        .limit(_EXPIRED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    expired = [ExpiredFile(*row) for row in (await db.execute(due)).all()]
    for file in expired:
        is_it = and_(StoredFile.workspace_id == file.workspace_id, StoredFile.id == file.id)
        if file.in_store:
            await db.execute(update(StoredFile).where(is_it).values(is_stored=False))
        else:
            await db.execute(delete(StoredFile).where(is_it))
    return expired


async def delete_row(db: AsyncSession, file: ExpiredFile) -> None:
    """Delete the row of a file whose bytes are gone."""
    await db.execute(
        delete(StoredFile).where(
            StoredFile.workspace_id == file.workspace_id,
            StoredFile.id == file.id,
            StoredFile.is_stored.is_(False),
        )
    )
