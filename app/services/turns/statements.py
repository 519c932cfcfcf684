"""What the turn's statements are made of: tables, conditions, leases."""

from datetime import timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, Dialect, Table, and_, bindparam, func

from app.models import (
    Agent,
    AgentVersion,
    AudioClip,
    IdempotencyKey,
    Message,
    Session,
    Turn,
    TurnEventBatch,
)
from app.services.turns.errors import TurnLost

LEASE_SECONDS = 6
LEASE = timedelta(seconds=LEASE_SECONDS)

turns = cast("Table", Turn.__table__)
messages = cast("Table", Message.__table__)
agents = cast("Table", Agent.__table__)
sessions = cast("Table", Session.__table__)
turn_events = cast("Table", TurnEventBatch.__table__)
audio_clips = cast("Table", AudioClip.__table__)
idempotency_keys = cast("Table", IdempotencyKey.__table__)
PERSONA_COLUMNS: tuple[ColumnElement[Any], ...] = (
    AgentVersion.__table__.c.version,
    AgentVersion.__table__.c.system_prompt,
    AgentVersion.__table__.c.model,
    AgentVersion.__table__.c.temperature,
    AgentVersion.__table__.c.max_output_tokens,
    AgentVersion.__table__.c.context_tokens,
    AgentVersion.__table__.c.voice,
    AgentVersion.__table__.c.language,
)


def named(*names: str) -> dict[str, Any]:
    """Set columns to parameters of the same name; conditions have theirs with a trailing `_`."""
    return {name: bindparam(name) for name in names}


def in_session() -> ColumnElement[bool]:
    """Select the turns of the session `session_id_`."""
    return and_(
        turns.c.workspace_id == bindparam("workspace_id_"),
        turns.c.session_id == bindparam("session_id_"),
    )


def is_turn() -> ColumnElement[bool]:
    """Select the turn `turn_id_`."""
    return and_(
        turns.c.workspace_id == bindparam("workspace_id_"), turns.c.id == bindparam("turn_id_")
    )


def is_attempt() -> ColumnElement[bool]:
    """Select the turn `turn_id_` while it is at its `attempt_`."""
    return and_(is_turn(), turns.c.attempt == bindparam("attempt_"))


def is_message() -> ColumnElement[bool]:
    """Select the message `message_id_`."""
    return and_(
        messages.c.workspace_id == bindparam("workspace_id_"),
        messages.c.id == bindparam("message_id_"),
    )


def clock(dialect: Dialect) -> ColumnElement[Any]:
    """Return the time that leases are compared with: `now_` where there is one server alone."""
    # The database's clock where several servers compare it; theirs may differ.
    if dialect.name == "postgresql":
        return func.now()
    return bindparam("now_", type_=turns.c.lease_expires_at.type)


def lease_end(dialect: Dialect) -> ColumnElement[Any]:
    """Return when a lease ends that begins now; SQLite is told, as `lease_end_`."""
    if dialect.name == "postgresql":
        return func.now() + LEASE
    return bindparam("lease_end_", type_=turns.c.lease_expires_at.type)


def lost() -> TurnLost:
    """Return the error of an attempt that is not the turn's any more."""
    return TurnLost("The session was deleted, or another server took the turn over.")
