"""Tables, conditions and lease expressions for the statements of turns."""

from dataclasses import fields
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, Dialect, Table, and_, bindparam, func

from app.models import (
    Agent,
    AgentVersion,
    IdempotencyKey,
    Message,
    Session,
    SessionFile,
    StoredClip,
    StoredFile,
    ToolCall,
    Turn,
    TurnEventBatch,
    TurnStep,
)
from app.services.turns.records import Persona

LEASE_SECONDS = 6
LEASE = timedelta(seconds=LEASE_SECONDS)

turns = cast("Table", Turn.__table__)
messages = cast("Table", Message.__table__)
agents = cast("Table", Agent.__table__)
sessions = cast("Table", Session.__table__)
turn_events = cast("Table", TurnEventBatch.__table__)
audio_clips = cast("Table", StoredClip.__table__)
turn_steps = cast("Table", TurnStep.__table__)
tool_calls = cast("Table", ToolCall.__table__)
files = cast("Table", StoredFile.__table__)
session_files = cast("Table", SessionFile.__table__)
idempotency_keys = cast("Table", IdempotencyKey.__table__)
PERSONA_COLUMNS: tuple[ColumnElement[Any], ...] = tuple(
    AgentVersion.__table__.c[field.name]
    for field in fields(Persona)
    if field.name in AgentVersion.__table__.c
)
"""In the order of the fields of `Persona`, which a row of them is made into."""


def same_named_parameters(*names: str) -> dict[str, Any]:
    """Return values for columns from parameters of the same name.

    Parameters of conditions have a trailing `_`.
    """
    return {name: bindparam(name) for name in names}


def in_session() -> ColumnElement[bool]:
    """Return the condition for the turns of the session `session_id_`."""
    return and_(
        turns.c.workspace_id == bindparam("workspace_id_"),
        turns.c.session_id == bindparam("session_id_"),
    )


def is_turn() -> ColumnElement[bool]:
    """Return the condition for the turn `turn_id_`."""
    return and_(
        turns.c.workspace_id == bindparam("workspace_id_"), turns.c.id == bindparam("turn_id_")
    )


def is_attempt() -> ColumnElement[bool]:
    """Return the condition for the turn `turn_id_` with its attempt `attempt_`."""
    return and_(is_turn(), turns.c.attempt == bindparam("attempt_"))


def is_message() -> ColumnElement[bool]:
    """Return the condition for the message `message_id_`."""
    return and_(
        messages.c.workspace_id == bindparam("workspace_id_"),
        messages.c.id == bindparam("message_id_"),
    )


def lease_clock(dialect: Dialect) -> ColumnElement[Any]:
    """Return the current time for leases: the parameter `now_` on SQLite, which has one server."""
    # On Postgres the database's clock, because the clocks of servers may differ.
    if dialect.name == "postgresql":
        return func.now()
    return bindparam("now_", type_=turns.c.lease_expires_at.type)


def lease_end(dialect: Dialect) -> ColumnElement[Any]:
    """Return the end of a lease that begins now; on SQLite the parameter `lease_end_`."""
    if dialect.name == "postgresql":
        return func.now() + LEASE
    return bindparam("lease_end_", type_=turns.c.lease_expires_at.type)
