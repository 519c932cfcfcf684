"""Read the messages of a session; only the turn engine and imports write them.

Each function works in the caller's transaction `db` and never commits.
"""

from collections.abc import Sequence

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import Message, Session, Turn


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
