"""A turn's way into the database: one short transaction.

Every function that changes a session's turns first locks the session's row, so that order and
queue are decided one at a time; on SQLite `BEGIN IMMEDIATE` does the same.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Any
from uuid import UUID

from sqlalchemy import Dialect, Update, bindparam, null, select, text, update
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct, Program, Rows, one
from app.core.values import value
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
from app.services.turns.histories import Histories, History, settled_for_good
from app.services.turns.loading import (
    TURN_COLUMNS,
    TurnRow,
    load_record,
    lock_session,
    read_history,
)
from app.services.turns.personas import PersonaKey, Personas
from app.services.turns.prompt import LOADED_MESSAGES, HistoryMessage
from app.services.turns.records import OnBusy, Persona, TurnOptions, TurnRecord
from app.services.turns.statements import (
    LEASE,
    in_session,
    is_attempt,
    is_turn,
    lease_end,
    named,
    turns,
)
from app.services.usage import NOBODYS_ACCOUNT, Account, budgets

QUEUE_LIMIT = 8
"""Turns that may wait in one session."""
_NO_PLACES: tuple[Any, ...] = (0, None, None, None, None)


@value(frozen=True, slots=True)
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
    user_id: str | None = None
    """The end user who says it: the session must be theirs."""


@value(frozen=True, slots=True)
class Known:
    """What this process need not load again."""

    personas: Personas = field(default_factory=Personas)
    histories: Histories = field(default_factory=Histories)


@value(frozen=True, slots=True)
class Accepted:
    """A turn, new or found by its key; `interrupt_id` is the live turn that it wants to end."""

    record: TurnRecord
    is_replayed: bool = False
    interrupt_id: UUID | None = None
    settled: History = ()
    """What the next turn of the session need not load."""


def accept(
    message: NewMessage, options: TurnOptions, owner_id: UUID, known: Known
) -> Program[Accepted]:
    """Store the user's message, the assistant's place and the turn, live or queued.

    A key that was used before leads to its turn, which is run again where it failed retryably.
    Raises `SessionNotFound`, `AgentArchived`, `SessionBusy`, `SessionQueueFull` or
    `IdempotencyKeyReused`, `TooManyTurns`, `UploadsExhausted`, `BudgetExhausted`.
    """
    if options.key:
        turn_id = yield from keys.claim(message.workspace_id, options.key)
        if turn_id:
            return (yield from _replay(message, turn_id, owner_id))
    accepted = yield from _accept_new(message, options, owner_id, known)
    if options.key:
        yield [keys.pointing_to_turn(accepted.record, options.key)]
    return accepted


def _accept_new(
    message: NewMessage, options: TurnOptions, owner_id: UUID, known: Known
) -> Program[Accepted]:
    now = utc_now()
    session = {"workspace_id_": message.workspace_id, "session_id_": message.session_id}
    before = known.histories.of((message.workspace_id, message.session_id))
    places, newest = yield [
        hot.TAKE_PLACES(now=now, **session),
        hot.HISTORY_AND_WAITING(**session, after_=before[-1].seq if before else 0),
    ]
    last_seq, agent_id, user_id, version, archived_at = places[0] if places else _NO_PLACES
    if not places or message.user_id not in {None, user_id}:
        raise SessionNotFound("There is no such session.")
    if archived_at:
        raise AgentArchived("The session's agent is archived: it takes no new messages.")
    if before and not _follow(before, newest):
        before = ()
        newest = yield from one(hot.HISTORY_AND_WAITING(**session, after_=0))
    waiting = newest[0][-1] if newest else 0  # each turn has its messages
    persona = yield from _persona((message.workspace_id, agent_id, version), known.personas)
    interrupt_id = None
    if waiting:
        interrupt_id = yield from _make_room(message, options.on_busy)
    newer = read_history(newest)
    told = (*(*before, *newer)[-LOADED_MESSAGES:], _question(message, last_seq - 1))
    record = TurnRecord(
        workspace_id=message.workspace_id,
        id=new_id(),
        session_id=message.session_id,
        modality=message.modality,
        status=TurnStatus.QUEUED if waiting else TurnStatus.IN_PROGRESS,
        attempt=1,
        user_message_id=new_id(),
        message_id=new_id(),
        user_seq=last_seq - 1,
        created_at=now,
        persona=persona,
        history=() if waiting else told,
        was_queued=bool(waiting),
        reservation=receipts.estimate(message, persona, told, now, waiting),
    )
    stored = _stored_turn(record) | {
        "agent_id": agent_id,
        "key_id": message.account.key_id,
        "user_id": message.account.user_id or user_id,
        **receipts.reserved_columns(record.reservation),
    }
    if waiting:
        inserted = hot.INSERT_QUEUED_TURN(**stored, owner_id=None, started_at=None)
    else:
        inserted = hot.INSERT_LIVE_TURN(
            **stored, owner_id=owner_id, started_at=now, lease_end_=now + LEASE
        )
    said = hot.INSERT_MESSAGES(**_stored_messages(record, message.content))
    yield from budgets.reserve(message.account, record.reservation, [inserted, said])
    settled = settled_for_good(before, newer)
    return Accepted(record, interrupt_id=interrupt_id, settled=settled)


def _follow(before: Sequence[HistoryMessage], newest: Rows) -> bool:
    """Tell whether messages, newest first, go on where those that are known end.

    They do not where a backup of the database was restored, or a crowd of them was sent elsewhere.
    """
    return bool(newest) and newest[-1][0] == before[-1].seq + 1


def _persona(key: PersonaKey, personas: Personas) -> Program[Persona]:
    known = personas.get(key)
    if known:
        return known
    workspace_id, agent_id, version = key
    (row,) = yield from one(
        hot.PERSONA(workspace_id_=workspace_id, agent_id_=agent_id, version_=version)
    )
    persona = Persona(*row)
    personas.keep(key, persona)
    return persona


def _question(message: NewMessage, seq: int) -> HistoryMessage:
    is_text = message.modality is Modality.TEXT
    status = MessageStatus.COMPLETED if is_text else MessageStatus.IN_PROGRESS
    return HistoryMessage(seq, Role.USER.value, status.value, message.content)


def _stored_turn(record: TurnRecord) -> dict[str, Any]:
    return {
        "workspace_id": record.workspace_id,
        "id": record.id,
        "session_id": record.session_id,
        "agent_version": record.persona.version,
        "modality": record.modality,
        "status": record.status,
        "user_message_id": record.user_message_id,
        "message_id": record.message_id,
        "user_seq": record.user_seq,
        "created_at": record.created_at,
    }


def _stored_messages(record: TurnRecord, content: str) -> dict[str, Any]:
    is_text = record.modality is Modality.TEXT
    return {
        "workspace_id": record.workspace_id,
        "session_id": record.session_id,
        "turn_id": record.id,
        "modality": record.modality,
        "created_at": record.created_at,
        "user_message_id": record.user_message_id,
        "user_seq": record.user_seq,
        "user_status": MessageStatus.COMPLETED if is_text else MessageStatus.IN_PROGRESS,
        "content": content,
        "message_id": record.message_id,
        "seq": record.user_seq + 1,
    }


def _make_room(message: NewMessage, on_busy: OnBusy) -> Program[UUID | None]:
    """Decide what becomes of a message to a busy session; return the turn to be cut short."""
    unsettled = yield from one(
        _UNSETTLED_IDS(workspace_id_=message.workspace_id, session_id_=message.session_id)
    )
    ((first_id,), *_) = unsettled
    if on_busy is OnBusy.REJECT:
        busy = SessionBusy("A turn of this session is not finished.")
        busy.facts["active_turn_id"] = str(first_id)
        raise busy
    if len(unsettled) > QUEUE_LIMIT:
        raise SessionQueueFull(
            f"{QUEUE_LIMIT} turns wait in this session already.", retry_after_seconds=2
        )
    if on_busy is not OnBusy.INTERRUPT:
        return None
    yield from request_cancel(message.workspace_id, first_id)
    return first_id


def _replay(message: NewMessage, turn_id: UUID, owner_id: UUID) -> Program[Accepted]:
    workspace_id = message.workspace_id
    record = yield from leases.find(workspace_id, turn_id)
    if record.status is not TurnStatus.FAILED:
        return Accepted(record, is_replayed=True)
    now = utc_now()
    turn = {"workspace_id_": workspace_id, "turn_id_": turn_id}
    yield from lock_session(record, now)
    error, unsettled = yield [
        _ERROR_CODE(**turn),
        _UNSETTLED_IDS(workspace_id_=workspace_id, session_id_=record.session_id),
    ]
    if not is_retryable(error_of_code(error[0][0] or "", "")):
        return Accepted(record, is_replayed=True)
    live = not unsettled
    run_again = _RUN_AGAIN if live else _WAIT_AGAIN
    rows = yield from one(
        run_again(
            **turn,
            attempt_=record.attempt,
            status=TurnStatus.IN_PROGRESS if live else TurnStatus.QUEUED,
            owner_id=owner_id if live else None,
            started_at=now if live else None,
            lease_end_=now + LEASE,
            key_id=message.account.key_id,
            reserved_day=now.date() if message.account.has_budgets else None,
        )
    )
    if not rows:  # another request with the key was first
        found = yield from leases.find(workspace_id, turn_id)
        return Accepted(found, is_replayed=True)
    yield [
        hot.SETTLE_MESSAGE(
            workspace_id_=workspace_id,
            message_id_=record.message_id,
            content="",
            status=MessageStatus.IN_PROGRESS,
        ),
        *event_store.forgetting(record),
    ]
    again = yield from load_record(TurnRow(*rows[0]), history=live)
    yield from budgets.reserve(message.account, again.reservation)
    return Accepted(replace(again, was_queued=not live))


def request_cancel(
    workspace_id: UUID, turn_id: UUID, played_ms: int | None = None
) -> Program[None]:
    """Ask whoever runs the turn to end it; `played_ms` of its sound were played."""
    turn = {"workspace_id_": workspace_id, "turn_id_": turn_id}
    yield [_REQUEST_CANCEL(**turn, now=utc_now(), cancel_played_ms=played_ms)]


def _unsettled_ids(_dialect: Dialect) -> ClauseElement:
    return select(turns.c.id).where(in_session(), text(UNSETTLED)).order_by(turns.c.user_seq)


def _error_code(_dialect: Dialect) -> ClauseElement:
    return select(turns.c.error_code).where(is_turn())


def _run_again(dialect: Dialect) -> Update:
    return _begin_again().values(lease_expires_at=lease_end(dialect))


def _wait_again(_dialect: Dialect) -> Update:
    return _begin_again().values(lease_expires_at=null())


def _begin_again() -> Update:
    return (
        update(turns)
        .where(is_attempt(), turns.c.status == TurnStatus.FAILED)
        .values(
            status=bindparam("status"),
            attempt=turns.c.attempt + 1,
            recoveries=0,
            owner_id=bindparam("owner_id"),
            started_at=bindparam("started_at"),
            ended_at=None,
            error_code=None,
            error_detail=None,
            cancel_requested_at=None,
            cancel_played_ms=None,
            key_id=bindparam("key_id"),
            reserved_day=bindparam("reserved_day"),
        )
        .returning(*TURN_COLUMNS)
    )


def _request_cancel(_dialect: Dialect) -> Update:
    return (
        update(turns)
        .where(is_turn(), text(LIVE))
        .values(cancel_requested_at=bindparam("now"), **named("cancel_played_ms"))
    )


_UNSETTLED_IDS = Direct(_unsettled_ids)
_ERROR_CODE = Direct(_error_code)
_RUN_AGAIN = Direct(_run_again)
_WAIT_AGAIN = Direct(_wait_again)
_REQUEST_CANCEL = Direct(_request_cancel)
