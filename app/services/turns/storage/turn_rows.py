"""Load turns: the row, the persona of its agent version, and its history."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Dialect, and_, bindparam, func, select
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Statement
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import AgentVersion, Modality, Session, TurnStatus
from app.services.crud import flat_pins
from app.services.tools.pinning import agent_tools
from app.services.turns.errors import turn_lost
from app.services.turns.records import (
    HistoryMessage,
    Persona,
    Receipt,
    TurnRecord,
    TurnRequest,
    persona_of_request,
)
from app.services.turns.storage import ledger, turn_statements
from app.services.turns.storage.tables import (
    PERSONA_COLUMNS,
    is_message,
    messages,
    turn_events,
    turns,
)
from app.services.usage import Reservation, budgets, reservations

_COLUMNS = len(HistoryMessage._fields)
_plain: Any = tuple


class TurnRow(NamedTuple):
    """A row with `TURN_COLUMNS`."""

    workspace_id: UUID
    id: UUID
    session_id: UUID | None
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
    agent_id: UUID | None
    user_id: str | None
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
    reserved_buckets: list[str] | None
    request: dict[str, Any] | None
    step_count: int


TURN_COLUMNS = tuple(turns.c[name] for name in TurnRow._fields)


def _persona_and_last_number_stmt(_dialect: Dialect) -> ClauseElement:
    stored = and_(
        turn_events.c.workspace_id == bindparam("workspace_id_"),
        turn_events.c.turn_id == bindparam("turn_id_"),
    )
    number = func.max(turn_events.c.last_number)
    last_number = select(number).where(stored).scalar_subquery()
    # Excludes the emptied batch that keeps only the last number of a failed attempt.
    last_event = select(number).where(stored, turn_events.c.events != b"").scalar_subquery()
    # The session may have moved to another agent since, and an unstored turn has no session.
    # A scalar subquery keeps the index usable.
    agent_id = (
        select(func.coalesce(turns.c.agent_id, Session.agent_id))
        .select_from(turns)
        .outerjoin(
            Session,
            and_(Session.workspace_id == turns.c.workspace_id, Session.id == turns.c.session_id),
        )
        .where(turns.c.workspace_id == bindparam("workspace_id_"))
        .where(turns.c.id == bindparam("turn_id_"))
        .scalar_subquery()
    )
    # The answer says how it is given: spoken or written.
    output = select(messages.c.modality).where(is_message()).scalar_subquery()
    return (
        select(last_number, last_event, output, *PERSONA_COLUMNS)
        .where(AgentVersion.workspace_id == bindparam("workspace_id_"))
        .where(AgentVersion.agent_id == agent_id)
        .where(AgentVersion.version == bindparam("version_"))
    )


_PERSONA_AND_LAST_NUMBER = PreparedStatement(_persona_and_last_number_stmt)


def lock_session(record: TurnRecord, now: datetime) -> TransactionScript[None]:
    """Lock the session's row. Raises `TurnLost` if the session is deleted."""
    locked = yield from fetch_one(
        turn_statements.LOCK_SESSION(
            workspace_id_=record.workspace_id, session_id_=record.session_id, now=now
        )
    )
    if not locked:
        raise turn_lost()


def hold_turn_stmt(record: TurnRecord) -> Statement:
    """Return the statement that locks the turn's row if its attempt is still current."""
    return turn_statements.HOLD_TURN(
        workspace_id_=record.workspace_id, turn_id_=record.id, attempt_=record.attempt
    )


def load_record(row: TurnRow, *, history: bool = True) -> TransactionScript[TurnRecord]:
    """Return the record of a row of `turns`, with its persona and, by default, its history."""
    ((last_number, last_event, output, *persona),) = yield from fetch_one(
        _PERSONA_AND_LAST_NUMBER(
            workspace_id_=row.workspace_id,
            turn_id_=row.id,
            version_=row.agent_version,
            message_id_=row.message_id,
        )
    )
    request = TurnRequest.from_json(row.request) if row.request else None
    stored_persona = yield from read_persona(row.workspace_id, persona)
    record = TurnRecord(
        workspace_id=row.workspace_id,
        id=row.id,
        session_id=row.session_id or row.id,
        modality=row.modality,
        status=row.status,
        attempt=row.attempt,
        user_message_id=row.user_message_id,
        message_id=row.message_id,
        user_seq=row.user_seq,
        created_at=row.created_at,
        persona=persona_of_request(stored_persona, request),
        history=(),
        events_after=last_event or 0,
        numbers_after=last_number or 0,
        reservation=_reservation(row),
        agent_id=row.agent_id,
        key_id=row.key_id,
        user_id=row.user_id,
        earlier=_earlier_receipt(row),
        request=request,
        output=output or row.modality,
        keeps_content=row.session_id is not None,
    )
    if row.step_count:
        steps = yield from ledger.load_steps(record)
        record = replace(record, steps=steps)
    if not history or not record.keeps_content:
        return record
    rows = yield from fetch_one(history_stmt(record))
    return replace(record, history=read_history(rows))


def read_persona(workspace_id: UUID, row: Sequence[Any]) -> TransactionScript[Persona]:
    """Return the persona of a row of `PERSONA_COLUMNS`, and load the tools that it pins."""
    stored = Persona(*row)
    pins: Any = stored.tools
    if not flat_pins(pins):
        return replace(stored, tools=None)
    keys = [(UUID(pin["tool_id"]), pin["version"]) for pin in flat_pins(pins)]
    found = yield [
        turn_statements.TOOL_VERSION(
            workspace_id_=workspace_id, tool_id_=tool_id, tool_version_=version
        )
        for tool_id, version in keys
    ]
    definitions = {key: rows[0][0] for key, rows in zip(keys, found, strict=True) if rows}
    return replace(stored, tools=agent_tools(pins, stored.tool_policy, definitions))


def _reservation(row: TurnRow) -> Reservation | None:
    if row.reserved_day is None:
        return None
    names = budgets.reserved_names(row.reserved_buckets, row.key_id)
    limits = (row.request or {}).get("bucket_limits", {})
    return Reservation(
        tuple(reservations.stored_bucket(name, limits.get(name)) for name in names),
        row.reserved_day,
        row.reserved_tokens or 0,
        row.reserved_nanos or 0,
    )


def _earlier_receipt(row: TurnRow) -> Receipt | None:
    if row.prompt_tokens is None:  # no attempt was settled
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


def history_stmt(record: TurnRecord) -> Statement:
    """Return the statement that loads the messages up to the turn's user message."""
    return turn_statements.HISTORY(
        workspace_id_=record.workspace_id,
        session_id_=record.session_id,
        user_seq_=record.user_seq,
    )


def load_history(
    workspace_id: UUID, session_id: UUID, up_to_seq: int
) -> TransactionScript[tuple[HistoryMessage, ...]]:
    """Return the newest messages of a session up to `up_to_seq` that prompts load."""
    rows = yield from fetch_one(
        turn_statements.HISTORY(
            workspace_id_=workspace_id, session_id_=session_id, user_seq_=up_to_seq
        )
    )
    return read_history(rows)


def read_history(rows: Sequence[tuple[Any, ...]]) -> tuple[HistoryMessage, ...]:
    """Convert rows of `history_stmt` to messages, oldest first; extra columns are ignored."""
    new = _plain.__new__  # equals `HistoryMessage(*row)` in a third of the time
    return tuple([new(HistoryMessage, row[:_COLUMNS]) for row in sorted(rows)])  # by `seq`
