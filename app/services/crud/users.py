"""Delete what belongs to an end user; their usage is kept under another name."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import (
    UNSETTLED,
    Budget,
    KeptToolUsage,
    KeptUsage,
    Message,
    RequestWindow,
    Session,
    StoredClip,
    StoredRecording,
    Turn,
    new_id,
)
from app.services.crud.errors import UserNotFound
from app.services.crud.sessions import delete_session
from app.services.files import rows
from app.services.usage.accounts import USER_PREFIX


@dataclass(frozen=True, slots=True)
class DeletedUser:
    """A receipt: how much of each kind was deleted, and under which name usage is kept."""

    sessions: int
    turns: int
    messages: int
    recordings: int
    audio_clips: int
    files: int
    usage_records: int
    kept_as: str
    """A random name: `GET /usage` has the sums under it."""


async def unsettled_turns(db: AsyncSession, caller: Caller, user_id: str) -> Sequence[UUID]:
    """Return the ids of the turns of an end user, or in their sessions, that have not ended.

    Locks the sessions: until the transaction ends, no turn begins in them.
    """
    mine = select(Session.id).where(
        Session.workspace_id == caller.workspace_id, Session.user_id == user_id
    )
    await db.execute(mine.order_by(Session.id).with_for_update())
    is_theirs = or_(Turn.session_id.in_(mine), Turn.user_id == user_id)
    query = select(Turn.id).where(
        Turn.workspace_id == caller.workspace_id, text(UNSETTLED), is_theirs
    )
    return (await db.scalars(query.order_by(Turn.user_seq))).all()


async def delete_user(
    db: AsyncSession, caller: Caller, user_id: str
) -> tuple[DeletedUser, list[UUID]]:
    """Delete an end user's sessions with all that is in them; return the receipt and their ids.

    Their id is replaced by a random name in what is kept: usage, and turns of other sessions.
    Raises `UserNotFound`.
    """
    workspace_id = caller.workspace_id
    mine = select(Session.id).where(
        Session.workspace_id == workspace_id, Session.user_id == user_id
    )
    session_ids = list(await db.scalars(mine.order_by(Session.id).with_for_update()))
    counts = [
        await db.scalar(
            select(func.count())
            .select_from(table)
            .where(table.workspace_id == workspace_id, table.session_id.in_(mine))
        )
        for table in (Turn, Message)
    ]
    turns = select(Turn.id).where(Turn.workspace_id == workspace_id, Turn.session_id.in_(mine))
    counts += [
        await db.scalar(
            select(func.count())
            .select_from(table)
            .where(table.workspace_id == workspace_id, table.turn_id.in_(turns))
        )
        for table in (StoredRecording, StoredClip)
    ]
    files = await rows.count_files(db, workspace_id, user_id)
    for session_id in session_ids:
        await delete_session(db, caller, session_id)
    kept_as = f"deleted-{new_id()}"
    await rows.forget_user(db, workspace_id, user_id, kept_as)
    files -= await rows.count_files(db, workspace_id, kept_as)
    renamed = 0
    for table in (KeptUsage, KeptToolUsage, Turn):
        result = await db.execute(
            update(table)
            .where(table.workspace_id == workspace_id, table.user_id == user_id)
            .values(user_id=kept_as)
            .returning(table.id)
        )
        renamed += len(result.all()) if table is not KeptToolUsage else 0
    for table in (Budget, RequestWindow):
        await db.execute(
            delete(table).where(
                table.workspace_id == workspace_id, table.bucket == USER_PREFIX + user_id
            )
        )
    if not session_ids and not renamed and not files:
        raise UserNotFound("No session and no usage of this end user exists in this workspace.")
    numbers = [count or 0 for count in counts]
    return DeletedUser(
        len(session_ids), *numbers, files=files, usage_records=renamed, kept_as=kept_as
    ), session_ids
