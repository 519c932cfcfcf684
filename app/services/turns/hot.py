"""The statements that every turn runs: built and compiled once, then run by the driver.

Each has named parameters; those of conditions end in `_`.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Insert,
    Update,
    and_,
    bindparam,
    func,
    insert,
    null,
    select,
    text,
    update,
)
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct
from app.models import UNSETTLED, Agent, AgentVersion, MessageStatus, Role
from app.services.turns.prompt import LOADED_MESSAGES
from app.services.turns.statements import (
    LEASE,
    PERSONA_COLUMNS,
    messages,
    sessions,
    turn_events,
    turns,
)

_TIME = turns.c.lease_expires_at.type
_SETTLED_COLUMNS = (
    "status", "ended_at", "error_code", "error_detail", "finish_reason", "model", "prompt_tokens",
    "cached_tokens", "completion_tokens", "speech_in_seconds", "speech_out_characters", "timings",
    "cost_nanos", "usage_estimated",
)  # fmt: skip


def _set(*names: str) -> dict[str, Any]:
    """Set columns to parameters of the same name; conditions have theirs with a trailing `_`."""
    return {name: bindparam(name) for name in names}


def _waiting() -> ColumnElement[int]:
    """Count the session's turns that are not settled, as it is after the lock."""
    other = turns.alias("other")
    unsettled = text(UNSETTLED.replace("status", "other.status"))
    return (
        select(func.count())
        .select_from(other)
        .where(
            other.c.workspace_id == bindparam("workspace_id_"),
            other.c.session_id == bindparam("session_id_"),
            unsettled,
        )
        .scalar_subquery()
    )


def _take_places() -> Update:
    """Lock the session and take two numbers."""
    return (
        update(sessions)
        .where(sessions.c.workspace_id == bindparam("workspace_id_"))
        .where(sessions.c.id == bindparam("session_id_"))
        .values(last_seq=sessions.c.last_seq + 2, updated_at=bindparam("now"))
        .returning(sessions.c.last_seq, sessions.c.agent_id, sessions.c.user_id)
    )


def _persona_and_waiting(_dialect: Dialect) -> ClauseElement:
    """Load the agent at its newest version, and how many turns of the session are unsettled."""
    newest = and_(
        AgentVersion.workspace_id == Agent.workspace_id,
        AgentVersion.agent_id == Agent.id,
        AgentVersion.version == Agent.version,
    )
    return (
        select(Agent.archived_at, _waiting().label("waiting"), *PERSONA_COLUMNS)
        .join(AgentVersion, newest)
        .where(Agent.workspace_id == bindparam("workspace_id_"))
        .where(Agent.id == bindparam("agent_id_"))
    )


def _insert_live_turn(dialect: Dialect) -> Insert:
    """Store a turn that runs; on Postgres its lease ends by the database's clock."""
    leased_by_database = dialect.name == "postgresql"
    lease: ColumnElement[Any] = (
        func.now() + LEASE if leased_by_database else bindparam("lease_expires_at", type_=_TIME)
    )
    return _insert_turn(lease)


def _insert_queued_turn(_dialect: Dialect) -> Insert:
    """Store a turn that waits."""
    return _insert_turn(null())


def _insert_turn(lease: ColumnElement[Any]) -> Insert:
    names = (
        "workspace_id", "id", "session_id", "agent_version", "modality", "status",
        "user_message_id", "message_id", "user_seq", "created_at", "owner_id", "started_at",
        "agent_id", "key_id", "user_id", "reserved_day", "reserved_tokens", "reserved_nanos",
    )  # fmt: skip
    return insert(turns).values(**_set(*names), attempt=1, recoveries=0, lease_expires_at=lease)


def _insert_messages(_dialect: Dialect) -> Insert:
    """Store the user's message, and the place of the assistant's."""

    def row(**parameters: str) -> dict[str, Any]:
        # Only the first row's parameters would take the types of their columns.
        shared = ("workspace_id", "session_id", "turn_id", "modality", "created_at")
        named = dict(zip(shared, shared, strict=True)) | parameters
        return {
            column: bindparam(name, type_=messages.c[column].type) for column, name in named.items()
        }

    user = row(id="user_message_id", seq="user_seq", status="user_status", content="content")
    assistant = row(id="message_id", seq="seq")
    user["role"] = Role.USER
    assistant |= {"role": Role.ASSISTANT, "status": MessageStatus.IN_PROGRESS, "content": ""}
    return insert(messages).values([user, assistant])


def _history(_dialect: Dialect) -> ClauseElement:
    """Load the newest messages up to the question, newest first."""
    return (
        select(messages.c.seq, messages.c.role, messages.c.status, messages.c.content)
        .where(
            messages.c.workspace_id == bindparam("workspace_id_"),
            messages.c.session_id == bindparam("session_id_"),
            messages.c.seq <= bindparam("user_seq_"),
        )
        .order_by(messages.c.seq.desc())
        .limit(LOADED_MESSAGES)
    )


def _lock_session() -> Update:
    """Wait until nobody else changes the session's turns."""
    return (
        update(sessions)
        .where(sessions.c.workspace_id == bindparam("workspace_id_"))
        .where(sessions.c.id == bindparam("session_id_"))
        .values(updated_at=bindparam("now"))
    )


def _settle_turn(_dialect: Dialect) -> Update:
    """Store the turn's end, if it is still this attempt's; return how many turns now wait."""
    return (
        update(turns)
        .where(
            turns.c.workspace_id == bindparam("workspace_id_"),
            turns.c.id == bindparam("turn_id_"),
            turns.c.attempt == bindparam("attempt_"),
            text(UNSETTLED),
        )
        .values(owner_id=None, lease_expires_at=None, **_set(*_SETTLED_COLUMNS))
        .returning(_waiting().label("waiting"))
    )


def _settle_message(_dialect: Dialect) -> Update:
    """Store the answer."""
    return (
        update(messages)
        .where(messages.c.workspace_id == bindparam("workspace_id_"))
        .where(messages.c.id == bindparam("message_id_"))
        .values(**_set("content", "status"))
    )


def _insert_events(_dialect: Dialect) -> Insert:
    """Store a batch of events."""
    names = ("workspace_id", "turn_id", "last_number", "events", "created_at")
    return insert(turn_events).values(**_set(*names))


PERSONA_AND_WAITING = Direct(_persona_and_waiting)
INSERT_LIVE_TURN = Direct(_insert_live_turn)
INSERT_QUEUED_TURN = Direct(_insert_queued_turn)
INSERT_MESSAGES = Direct(_insert_messages)
HISTORY = Direct(_history)
SETTLE_TURN = Direct(_settle_turn)
SETTLE_MESSAGE = Direct(_settle_message)
INSERT_EVENTS = Direct(_insert_events)

# The first of a transaction, by SQLAlchemy, which begins it.
TAKE_PLACES = _take_places()
LOCK_SESSION = _lock_session()
