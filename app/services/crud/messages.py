"""Read the messages of a session; add and wipe those that no turn is writing.

Each function works in the caller's transaction `db` and never commits.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import (
    Message,
    MessageStatus,
    Modality,
    Role,
    Session,
    Turn,
    TurnEventBatch,
    TurnStep,
    new_id,
    utc_now,
)
from app.services.crud.errors import SessionBusy
from app.services.crud.sessions import visible_sessions


async def list_messages(
    db: AsyncSession,
    session: Session,
    *,
    after_seq: int = 0,
    limit: int | None = None,
) -> Sequence[Message]:
    """Return messages with a `seq` above `after_seq`, oldest first; all of them without `limit`."""
    return (
        await db.scalars(
            select(Message)
            .where(
                Message.workspace_id == session.workspace_id,
                Message.session_id == session.id,
                Message.seq > after_seq,
            )
            .order_by(Message.seq)
            .limit(limit)
        )
    ).all()


async def list_history(  # noqa: PLR0913  # one filter each
    db: AsyncSession,
    session: Session,
    *,
    after_seq: int = 0,
    before_seq: int | None = None,
    newest_first: bool = False,
    limit: int | None = None,
) -> Sequence[tuple[Message, Turn | None]]:
    """Return messages between two `seq`, without both, each answer with its turn.

    `newest_first` also says from which end `limit` counts.
    """
    answers = and_(
        Turn.workspace_id == Message.workspace_id,
        Turn.id == Message.turn_id,
        Turn.message_id == Message.id,
    )
    query = (
        select(Message, Turn)
        .outerjoin(Turn, answers)
        .where(
            Message.workspace_id == session.workspace_id,
            Message.session_id == session.id,
            Message.seq > after_seq,
        )
        .order_by(Message.seq.desc() if newest_first else Message.seq)
        .limit(limit)
    )
    if before_seq is not None:
        query = query.where(Message.seq < before_seq)
    return [(message, turn) for message, turn in (await db.execute(query)).all()]


class PostedRow(NamedTuple):
    """A message without a turn."""

    role: Role
    content: str
    parts: list[dict[str, Any]] | None


async def post_messages(
    db: AsyncSession, session: Session, rows: Sequence[PostedRow]
) -> Sequence[Message]:
    """Insert messages behind the others of a session, which the caller has locked."""
    now, after_seq = utc_now(), session.last_seq
    session.last_seq += len(rows)
    session.updated_at = now
    await db.flush()
    values = [
        {
            "workspace_id": session.workspace_id,
            "session_id": session.id,
            "id": new_id(),
            "seq": seq,
            "role": row.role,
            "modality": Modality.TEXT,
            "status": MessageStatus.COMPLETED,
            "content": row.content,
            "parts": row.parts,
            "created_at": now,
        }
        for seq, row in enumerate(rows, start=after_seq + 1)
    ]
    if values:
        await db.execute(insert(Message), values)
    return await list_messages(db, session, after_seq=after_seq)


async def find_message(db: AsyncSession, session: Session, message_id: UUID) -> Message | None:
    """Return a message of the session; `None` where it has none with this id."""
    query = select(Message).where(
        Message.workspace_id == session.workspace_id,
        Message.session_id == session.id,
        Message.id == message_id,
    )
    return await db.scalar(query)


async def find_messages(
    db: AsyncSession, caller: Caller, message_ids: Sequence[UUID]
) -> Mapping[UUID, Message]:
    """Return the messages with these ids that the caller may see, by id."""
    if not message_ids:
        return {}
    query = (
        select(Message)
        .join(
            Session,
            and_(Session.workspace_id == Message.workspace_id, Session.id == Message.session_id),
        )
        .where(Message.workspace_id == caller.workspace_id, Message.id.in_(message_ids))
        .where(visible_sessions(caller, without_agent=True))
    )
    return {message.id: message for message in await db.scalars(query)}


async def wipe_message(db: AsyncSession, message: Message) -> None:
    """Delete what a message says, and the events and steps that say it, too; its `seq` stays.

    The caller has locked the session. Raises `SessionBusy` where it is not complete.
    """
    if message.status is MessageStatus.IN_PROGRESS:
        raise SessionBusy("The message is not complete: wait for its turn.")
    message.content, message.parts, message.output, message.heard_content = "", None, None, None
    if message.turn_id is None:
        return
    of_turn = and_(
        TurnEventBatch.workspace_id == message.workspace_id,
        TurnEventBatch.turn_id == message.turn_id,
    )
    await db.execute(delete(TurnEventBatch).where(of_turn))
    if message.role is Role.ASSISTANT:
        await db.execute(
            update(TurnStep)
            .where(
                TurnStep.workspace_id == message.workspace_id, TurnStep.turn_id == message.turn_id
            )
            .values(content="", reasoning=None)
        )
