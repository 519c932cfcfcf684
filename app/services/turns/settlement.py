"""A turn's way through the database after its acceptance: what is heard, checkpoints, its end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.direct import run_all
from app.models import LIVE, UNSETTLED, MessageStatus, Modality, TurnStatus, utc_now
from app.services.turns import event_store, hot, receipts
from app.services.turns.events import TurnEvent
from app.services.turns.loading import load_record, lock_session
from app.services.turns.records import Outcome, Progress, TurnRecord
from app.services.turns.statements import (
    hold,
    in_session,
    is_message,
    lost,
    messages,
    own,
    turns,
)


async def hear(connection: AsyncConnection, record: TurnRecord, words: str) -> None:
    """Store what a voice turn's user said. Raises `TurnLost`."""
    await hold(connection, record)
    await connection.execute(
        update(messages)
        .where(is_message(record, record.user_message_id))
        .values(content=words, status=MessageStatus.COMPLETED)
    )


async def checkpoint(
    connection: AsyncConnection, record: TurnRecord, events: Sequence[TurnEvent]
) -> None:
    """Store what a running turn has come to. Raises `TurnLost`."""
    await hold(connection, record)
    await event_store.append(connection, record, events, utc_now())


async def settle(  # noqa: PLR0913, PLR0917  # what a turn leaves
    connection: AsyncConnection,
    record: TurnRecord,
    outcome: Outcome,
    progress: Progress,
    events: Sequence[TurnEvent],
    owner_id: UUID,
) -> TurnRecord | None:
    """Store how the turn ended, with its last events.

    Returns the session's next turn, which is `owner_id`'s now. Raises `TurnLost` when the turn
    is not this attempt's any more; then nothing is stored.
    """
    now = utc_now()
    await lock_session(connection, record, now)
    error = outcome.error
    end = {
        "workspace_id_": record.workspace_id,
        "session_id_": record.session_id,
        "turn_id_": record.id,
        "attempt_": record.attempt,
        "status": outcome.status,
        "ended_at": now,
        "error_code": error.code if error else None,
        "error_detail": error.detail if error else None,
        "finish_reason": progress.finish_reason,
        "model": progress.model,
        "timings": progress.timings,
        **receipts.columns(progress),
    }
    answer = {
        "workspace_id_": record.workspace_id,
        "message_id_": record.message_id,
        "content": outcome.content,
        "status": outcome.message_status,
    }
    ended, *_ = await run_all(
        connection,
        [
            (hot.SETTLE_TURN, end),
            (hot.SETTLE_MESSAGE, answer),
            *event_store.appending(record, events, now),
            *receipts.settling(record, progress),
        ],
    )
    if not ended:
        raise lost()  # and all of it is rolled back
    ((waiting,),) = ended
    if record.modality is Modality.VOICE:
        await connection.execute(
            update(messages)
            .where(
                is_message(record, record.user_message_id),
                messages.c.status == MessageStatus.IN_PROGRESS,
            )
            .values(status=MessageStatus.FAILED)
        )
    return await _promote_next(connection, record, owner_id, now) if waiting else None


async def _promote_next(
    connection: AsyncConnection, record: TurnRecord, owner_id: UUID, now: datetime
) -> TurnRecord | None:
    oldest = (
        select(turns.c.id)
        .where(in_session(record.workspace_id, record.session_id), text("status = 'queued'"))
        .where(text(UNSETTLED))
        .order_by(turns.c.user_seq)
        .limit(1)
        .scalar_subquery()
    )
    live = select(turns.c.id).where(in_session(record.workspace_id, record.session_id), text(LIVE))
    row = (
        await connection.execute(
            own(connection, owner_id, now)
            .where(turns.c.workspace_id == record.workspace_id, turns.c.id == oldest)
            .where(~live.exists())
            .values(status=TurnStatus.IN_PROGRESS)
            .returning(*turns.c)
        )
    ).one_or_none()
    if row is None:
        return None
    return replace(await load_record(connection, row), was_queued=True)
