"""Turns as they are loaded: a row, the persona that it was accepted with, and its history."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Dialect, and_, bindparam, func, select
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct, Program, Statement, one
from app.models import AgentVersion, Modality, Session, TurnStatus
from app.services.turns import hot
from app.services.turns.prompt import HistoryMessage
from app.services.turns.records import Persona, Receipt, TurnRecord
from app.services.turns.statements import PERSONA_COLUMNS, lost, turn_events, turns
from app.services.usage import Reservation

_COLUMNS = len(HistoryMessage._fields)
_plain: Any = tuple


class TurnRow(NamedTuple):
    """A row of `TURN_COLUMNS`."""

    workspace_id: UUID
    id: UUID
    session_id: UUID
    modality: Modality
    status: TurnStatus
    attempt: int
    user_message_id: UUID
    message_id: UUID
    user_seq: int
    created_at: datetime
    agent_version: int
    recoveries: int
    error_code: str | None
    key_id: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    speech_in_seconds: float | None
    speech_out_characters: int | None
    cost_nanos: int | None
    usage_estimated: bool | None
    reserved_day: date | None
    reserved_tokens: int | None
    reserved_nanos: int | None


TURN_COLUMNS = tuple(turns.c[name] for name in TurnRow._fields)


def _persona_and_last_number(_dialect: Dialect) -> ClauseElement:
    stored = and_(
        turn_events.c.workspace_id == bindparam("workspace_id_"),
        turn_events.c.turn_id == bindparam("turn_id_"),
    )
    number = func.max(turn_events.c.last_number)
    last_number = select(number).where(stored).scalar_subquery()
    # Without those of a failed attempt, whose last number alone was kept.
    last_event = select(number).where(stored, turn_events.c.events != b"").scalar_subquery()
    its_agent = and_(
        Session.workspace_id == AgentVersion.workspace_id,
        Session.agent_id == AgentVersion.agent_id,
    )
    return (
        select(last_number, last_event, *PERSONA_COLUMNS)
        .join(Session, its_agent)
        .where(Session.workspace_id == bindparam("workspace_id_"))
        .where(Session.id == bindparam("session_id_"))
        .where(AgentVersion.version == bindparam("version_"))
    )


_PERSONA_AND_LAST_NUMBER = Direct(_persona_and_last_number)


def lock_session(record: TurnRecord, now: datetime) -> Program[None]:
    """Wait for the session's turn to be changed. Raises `TurnLost` where it is deleted."""
    locked = yield from one(
        hot.LOCK_SESSION(workspace_id_=record.workspace_id, session_id_=record.session_id, now=now)
    )
    if not locked:
        raise lost()


def hold(record: TurnRecord) -> Statement:
    """Return what locks the turn's row while it is still this attempt's."""
    return hot.HOLD_TURN(
        workspace_id_=record.workspace_id, turn_id_=record.id, attempt_=record.attempt
    )


def load_record(row: TurnRow, *, history: bool = True) -> Program[TurnRecord]:
    """Return the record of a row of `turns`, with the persona that it was accepted with."""
    ((last_number, last_event, *persona),) = yield from one(
        _PERSONA_AND_LAST_NUMBER(
            workspace_id_=row.workspace_id,
            session_id_=row.session_id,
            turn_id_=row.id,
            version_=row.agent_version,
        )
    )
    record = TurnRecord(
        workspace_id=row.workspace_id,
        id=row.id,
        session_id=row.session_id,
        modality=row.modality,
        status=row.status,
        attempt=row.attempt,
        user_message_id=row.user_message_id,
        message_id=row.message_id,
        user_seq=row.user_seq,
        created_at=row.created_at,
        persona=Persona(*persona),
        history=(),
        events_after=last_event or 0,
        numbers_after=last_number or 0,
        reservation=_reservation_of(row),
        earlier=_earlier_of(row),
    )
    if not history:
        return record
    rows = yield from one(history_of(record))
    return replace(record, history=read_history(rows))


def _reservation_of(row: TurnRow) -> Reservation | None:
    if row.reserved_day is None:
        return None
    return Reservation(
        row.key_id or "", row.reserved_day, row.reserved_tokens or 0, row.reserved_nanos or 0
    )


def _earlier_of(row: TurnRow) -> Receipt | None:
    if row.prompt_tokens is None:  # no attempt of it was settled
        return None
    return Receipt(
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens or 0,
        completion_tokens=row.completion_tokens or 0,
        speech_in_seconds=row.speech_in_seconds or 0,
        speech_out_characters=row.speech_out_characters or 0,
        cost_nanos=row.cost_nanos,
        estimated=bool(row.usage_estimated),
    )


def history_of(record: TurnRecord) -> Statement:
    """Return what loads the settled messages before the turn, and its question."""
    return hot.HISTORY(
        workspace_id_=record.workspace_id,
        session_id_=record.session_id,
        user_seq_=record.user_seq,
    )


def read_history(rows: Sequence[tuple[Any, ...]]) -> tuple[HistoryMessage, ...]:
    """Return the rows of `history_of`, oldest first; what else a row may hold is passed over."""
    new = _plain.__new__  # as `HistoryMessage(*row)`, in a third of the time
    return tuple([new(HistoryMessage, row[:_COLUMNS]) for row in sorted(rows)])  # by `seq`
