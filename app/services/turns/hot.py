"""The statements that every turn runs: built and compiled once, then run by the driver.

Each has named parameters; those of conditions end in `_`.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Insert,
    Select,
    String,
    Update,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    null,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.sql import ClauseElement

from app.core.direct import Direct
from app.models import LIVE, UNSETTLED, AgentVersion, MessageStatus, Role
from app.services.turns.prompt import LOADED_MESSAGES
from app.services.turns.statements import (
    PERSONA_COLUMNS,
    agents,
    is_attempt,
    is_message,
    lease_end,
    messages,
    named,
    sessions,
    turn_events,
    turns,
)

_other = turns.alias("other")
_seen = sessions.alias("seen")
_SETTLED_COLUMNS = (
    "status", "ended_at", "error_code", "error_detail", "finish_reason", "model", "prompt_tokens",
    "cached_tokens", "completion_tokens", "speech_in_seconds", "speech_out_characters", "timings",
    "cost_nanos", "usage_estimated",
)  # fmt: skip


def _unsettled(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the session's turns that are not settled, as it is after the lock."""
    unsettled = text(UNSETTLED.replace("status", "other.status"))
    return (
        select(func.count())
        .select_from(_other)
        .where(
            _other.c.workspace_id == bindparam("workspace_id_"),
            _other.c.session_id == bindparam("session_id_"),
            unsettled,
            *conditions,
        )
        .scalar_subquery()
    )


def _change_session() -> Update:
    """Change the session, which locks it until the transaction ends."""
    return (
        update(sessions)
        .where(sessions.c.workspace_id == bindparam("workspace_id_"))
        .where(sessions.c.id == bindparam("session_id_"))
        .values(updated_at=bindparam("now"))
    )


def _is_as_seen() -> ColumnElement[bool]:
    """Tell whether the session's row, which is locked by now, is the one that was found."""
    # Everything that changes a session's turns changes its row, so gives it another `xmin`.
    xmin: ColumnElement[Any] = literal_column("seen.xmin")
    found = (
        select(xmin)
        .select_from(_seen)
        .where(_seen.c.workspace_id == bindparam("workspace_id_"))
        .where(_seen.c.id == bindparam("session_id_"))
        .scalar_subquery()
    )
    return literal_column("sessions.xmin") == found


def _take_places(_dialect: Dialect) -> Update:
    """Lock the session and take two numbers; tell its agent's newest version."""
    return (
        _change_session()
        .values(last_seq=sessions.c.last_seq + 2)
        .returning(
            sessions.c.last_seq,
            sessions.c.agent_id,
            sessions.c.user_id,
            _of_agent(agents.c.version),
            _of_agent(agents.c.archived_at),
        )
    )


def _of_agent(column: ColumnElement[Any]) -> ColumnElement[Any]:
    its_agent = and_(
        agents.c.workspace_id == bindparam("workspace_id_"), agents.c.id == sessions.c.agent_id
    )
    return select(column).where(its_agent).correlate(sessions).scalar_subquery()


def _lock_session(_dialect: Dialect) -> Update:
    """Wait until nobody else changes the session's turns."""
    return _change_session().returning(sessions.c.id)


def _persona(_dialect: Dialect) -> ClauseElement:
    """Load an agent's version."""
    return select(*PERSONA_COLUMNS).where(
        AgentVersion.workspace_id == bindparam("workspace_id_"),
        AgentVersion.agent_id == bindparam("agent_id_"),
        AgentVersion.version == bindparam("version_"),
    )


def _insert_live_turn(dialect: Dialect) -> Insert:
    """Store a turn that runs."""
    return _insert_turn(lease_end(dialect))


def _insert_queued_turn(_dialect: Dialect) -> Insert:
    """Store a turn that waits."""
    return _insert_turn(null())


def _insert_turn(lease: ColumnElement[Any]) -> Insert:
    names = (
        "workspace_id", "id", "session_id", "agent_version", "modality", "status",
        "user_message_id", "message_id", "user_seq", "created_at", "owner_id", "started_at",
        "agent_id", "key_id", "user_id", "reserved_day", "reserved_tokens", "reserved_nanos",
    )  # fmt: skip
    return insert(turns).values(**named(*names), attempt=1, recoveries=0, lease_expires_at=lease)


def _insert_messages(_dialect: Dialect) -> Insert:
    """Store the user's message, and the place of the assistant's."""

    def row(**parameters: str) -> dict[str, Any]:
        # Only the first row's parameters would take the types of their columns.
        shared = ("workspace_id", "session_id", "turn_id", "modality", "created_at")
        names = dict(zip(shared, shared, strict=True)) | parameters
        return {
            column: bindparam(name, type_=messages.c[column].type) for column, name in names.items()
        }

    user = row(id="user_message_id", seq="user_seq", status="user_status", content="content")
    assistant = row(id="message_id", seq="seq")
    user["role"] = Role.USER
    assistant |= {"role": Role.ASSISTANT, "status": MessageStatus.IN_PROGRESS, "content": ""}
    return insert(messages).values([user, assistant])


def _history(_dialect: Dialect) -> ClauseElement:
    """Load the newest messages up to the question, newest first."""
    return _newest_messages().where(messages.c.seq <= bindparam("user_seq_"))


def _history_and_waiting(_dialect: Dialect) -> ClauseElement:
    """Load the session's newest messages, and beside each how many of its turns are unsettled.

    Only those above a number, for what is before may be known.
    """
    newest = _newest_messages(_unsettled().label("waiting"))
    return newest.where(messages.c.seq > bindparam("after_"))


def _newest_messages(*more: ColumnElement[Any]) -> Select[Any]:
    heard = func.coalesce(messages.c.heard_content, messages.c.content)
    role, status, modality = (
        type_coerce(messages.c[name], String) for name in ("role", "status", "modality")
    )
    return (
        select(messages.c.seq, role, status, heard, modality, *more)
        .where(
            messages.c.workspace_id == bindparam("workspace_id_"),
            messages.c.session_id == bindparam("session_id_"),
        )
        .order_by(messages.c.seq.desc())
        .limit(LOADED_MESSAGES)
    )


def _settle_turn(_dialect: Dialect) -> Update:
    """Store the turn's end, if it is still this attempt's; return how many others wait."""
    return (
        update(turns)
        .where(is_attempt(), text(UNSETTLED))
        .values(owner_id=None, lease_expires_at=None, **named(*_SETTLED_COLUMNS))
        .returning(_unsettled(_other.c.id != bindparam("turn_id_")).label("waiting"))
    )


def _settle_message(_dialect: Dialect) -> Update:
    """Store the answer, or what the user was heard to say."""
    return update(messages).where(is_message()).values(**named("content", "status"))


def _hold_turn(_dialect: Dialect) -> Update:
    """Lock the turn while it is still this attempt's, and live."""
    return (
        update(turns)
        .where(is_attempt(), text(LIVE))
        .values(attempt=bindparam("attempt_"))
        .returning(turns.c.id)
    )


def _insert_events(_dialect: Dialect) -> Insert:
    """Store a batch of events."""
    names = ("workspace_id", "turn_id", "last_number", "events", "created_at")
    return insert(turn_events).values(**named(*names))


TAKE_PLACES = Direct(_take_places, _is_as_seen)
LOCK_SESSION = Direct(_lock_session)
PERSONA = Direct(_persona)
INSERT_LIVE_TURN = Direct(_insert_live_turn)
INSERT_QUEUED_TURN = Direct(_insert_queued_turn)
INSERT_MESSAGES = Direct(_insert_messages)
HISTORY = Direct(_history)
HISTORY_AND_WAITING = Direct(_history_and_waiting)
SETTLE_TURN = Direct(_settle_turn)
SETTLE_MESSAGE = Direct(_settle_message)
HOLD_TURN = Direct(_hold_turn)
INSERT_EVENTS = Direct(_insert_events)
