"""A turn's way into the database, in Core: one short transaction.

Every function that changes a session's turns first locks the session's row, so that order and
queue are decided one at a time; on SQLite `BEGIN IMMEDIATE` does the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.direct import Direct, run_all
from app.models import (
    LIVE,
    UNSETTLED,
    MessageStatus,
    Modality,
    Role,
    TurnStatus,
    new_id,
    utc_now,
)
from app.services.crud import AgentArchived, SessionBusy, SessionNotFound
from app.services.turns import event_store, hot, keys, leases, receipts
from app.services.turns.errors import SessionQueueFull, error_of_code, is_retryable
from app.services.turns.loading import load_record, lock_session, read_history
from app.services.turns.prompt import HistoryMessage
from app.services.turns.records import OnBusy, Persona, TurnOptions, TurnRecord
from app.services.turns.statements import (
    LEASE,
    in_session,
    is_message,
    is_turn,
    lease_end,
    messages,
    turns,
)
from app.services.usage import NOBODYS_ACCOUNT, Account, budgets

QUEUE_LIMIT = 8
"""Turns that may wait in one session."""


@dataclass(frozen=True, slots=True)
class NewMessage:
    """What a caller says in a session."""

    workspace_id: UUID
    session_id: UUID
    modality: Modality
    content: str
    """Empty for a voice turn, until it is heard."""
    account: Account = NOBODYS_ACCOUNT
    upload_seconds: float | None = None
    """How long a voice turn's recording is."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A turn, new or found by its key; `interrupt_id` is the live turn that it wants to end."""

    record: TurnRecord
    is_replayed: bool = False
    interrupt_id: UUID | None = None


async def accept(
    connection: AsyncConnection, message: NewMessage, options: TurnOptions, owner_id: UUID
) -> Accepted:
    """Store the user's message, the assistant's place and the turn, live or queued.

    A key that was used before leads to its turn, which is run again where it failed retryably.
    Raises `SessionNotFound`, `AgentArchived`, `SessionBusy`, `SessionQueueFull` or
    `IdempotencyKeyReused`.
    """
    if options.key:
        turn_id = await keys.claim(connection, message.workspace_id, options.key)
        if turn_id:
            return await _replay(connection, message, turn_id, owner_id)
    accepted = await _accept_new(connection, message, options, owner_id)
    if options.key:
        await keys.point_to_turn(connection, accepted.record, options.key)
    return accepted


async def _accept_new(
    connection: AsyncConnection, message: NewMessage, options: TurnOptions, owner_id: UUID
) -> Accepted:
    now = utc_now()
    workspace_id, session_id, modality = message.workspace_id, message.session_id, message.modality
    key = {"workspace_id_": workspace_id, "session_id_": session_id}
    places = (await connection.execute(hot.TAKE_PLACES, key | {"now": now})).one_or_none()
    if places is None:
        raise SessionNotFound(f"There is no session {session_id}.")
    last_seq, agent_id, user_id = places
    found, loaded = await run_all(
        connection,
        [
            (hot.PERSONA_AND_WAITING, key | {"agent_id_": agent_id}),
            (hot.HISTORY, key | {"user_seq_": last_seq - 1}),
        ],
    )
    archived_at, waiting, *of_persona = found[0]
    if archived_at:
        raise AgentArchived("The session's agent is archived: it takes no new messages.")
    interrupt_id = None
    if waiting:
        interrupt_id = await _make_room(connection, message, options.on_busy)
    live = not waiting
    is_text = modality is Modality.TEXT
    user_status = MessageStatus.COMPLETED if is_text else MessageStatus.IN_PROGRESS
    question = HistoryMessage(last_seq - 1, Role.USER, user_status, message.content)
    persona, history = Persona(*of_persona), (*read_history(loaded), question)
    reservation = receipts.estimate(
        message.account,
        persona,
        history,
        now,
        waiting=waiting,
        upload_seconds=message.upload_seconds,
    )
    record = TurnRecord(
        workspace_id=workspace_id,
        id=new_id(),
        session_id=session_id,
        modality=modality,
        status=TurnStatus.IN_PROGRESS if live else TurnStatus.QUEUED,
        attempt=1,
        user_message_id=new_id(),
        message_id=new_id(),
        user_seq=last_seq - 1,
        created_at=now,
        persona=persona,
        history=history if live else (),
        was_queued=not live,
        reservation=reservation,
    )
    stored = {
        "workspace_id": workspace_id,
        "id": record.id,
        "session_id": session_id,
        "agent_version": record.persona.version,
        "modality": modality,
        "status": record.status,
        "user_message_id": record.user_message_id,
        "message_id": record.message_id,
        "user_seq": record.user_seq,
        "created_at": now,
        "owner_id": owner_id if live else None,
        "started_at": now if live else None,
        "lease_expires_at": now + LEASE,
        "agent_id": agent_id,
        "key_id": message.account.key_id,
        "user_id": message.account.user_id or user_id,
        **receipts.reserved_columns(reservation),
    }
    insert_turn = hot.INSERT_LIVE_TURN if live else hot.INSERT_QUEUED_TURN
    said = {
        "workspace_id": workspace_id,
        "session_id": session_id,
        "turn_id": record.id,
        "modality": modality,
        "created_at": now,
        "user_message_id": record.user_message_id,
        "user_seq": record.user_seq,
        "user_status": user_status,
        "content": message.content,
        "message_id": record.message_id,
        "seq": last_seq,
    }
    work: list[tuple[Direct, Mapping[str, Any]]] = [
        (insert_turn, stored),
        (hot.INSERT_MESSAGES, said),
        *budgets.reserving(message.account, reservation),
    ]
    *_, reserved = await run_all(connection, work)
    await budgets.require(connection, message.account, reservation, reserved)
    return Accepted(record, interrupt_id=interrupt_id)


async def _make_room(
    connection: AsyncConnection, message: NewMessage, on_busy: OnBusy
) -> UUID | None:
    """Decide what becomes of a message to a busy session; return the turn to be cut short."""
    unsettled = (
        await connection.scalars(
            select(turns.c.id)
            .where(in_session(message.workspace_id, message.session_id), text(UNSETTLED))
            .order_by(turns.c.user_seq)
        )
    ).all()
    if on_busy is OnBusy.REJECT:
        busy = SessionBusy("A turn of this session is not finished.")
        busy.facts["active_turn_id"] = str(unsettled[0])
        raise busy
    if len(unsettled) > QUEUE_LIMIT:
        raise SessionQueueFull(
            f"{QUEUE_LIMIT} turns wait in this session already.", retry_after_seconds=2
        )
    if on_busy is not OnBusy.INTERRUPT:
        return None
    await request_cancel(connection, message.workspace_id, unsettled[0])
    return unsettled[0]


async def _replay(
    connection: AsyncConnection, message: NewMessage, turn_id: UUID, owner_id: UUID
) -> Accepted:
    workspace_id = message.workspace_id
    record = await leases.find(connection, workspace_id, turn_id)
    if record.status is not TurnStatus.FAILED or not await _may_run_again(connection, record):
        return Accepted(record, is_replayed=True)
    now = utc_now()
    await lock_session(connection, record, now)
    live = not await connection.scalar(
        select(func.count())
        .select_from(turns)
        .where(in_session(workspace_id, record.session_id), text(UNSETTLED))
    )
    row = (
        await connection.execute(
            update(turns)
            .where(is_turn(record), turns.c.attempt == record.attempt)
            .where(turns.c.status == TurnStatus.FAILED)
            .values(
                status=TurnStatus.IN_PROGRESS if live else TurnStatus.QUEUED,
                attempt=turns.c.attempt + 1,
                owner_id=owner_id if live else None,
                lease_expires_at=lease_end(connection, now) if live else None,
                started_at=now if live else None,
                ended_at=None,
                error_code=None,
                error_detail=None,
                cancel_requested_at=None,
                key_id=message.account.key_id,
                reserved_day=now.date() if message.account.has_budgets else None,
            )
            .returning(*turns.c)
        )
    ).one_or_none()
    if row is None:  # another request with the key was first
        return Accepted(await leases.find(connection, workspace_id, turn_id), is_replayed=True)
    await connection.execute(
        update(messages)
        .where(is_message(record, record.message_id))
        .values(status=MessageStatus.IN_PROGRESS, content="")
    )
    await event_store.forget(connection, record)
    again = replace(await load_record(connection, row, history=live), was_queued=not live)
    await budgets.reserve(connection, message.account, again.reservation)
    return Accepted(again)


async def _may_run_again(connection: AsyncConnection, record: TurnRecord) -> bool:
    code = await connection.scalar(select(turns.c.error_code).where(is_turn(record)))
    return record.modality is Modality.TEXT and is_retryable(error_of_code(code or "", ""))


async def request_cancel(connection: AsyncConnection, workspace_id: UUID, turn_id: UUID) -> None:
    """Ask whoever runs the turn to end it."""
    await connection.execute(
        update(turns)
        .where(turns.c.workspace_id == workspace_id, turns.c.id == turn_id, text(LIVE))
        .values(cancel_requested_at=utc_now())
    )
