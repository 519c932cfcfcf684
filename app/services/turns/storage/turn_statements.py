"""The prepared statements of every turn: compiled once, then executed by the driver.

Parameters are named; those of conditions end in `_`.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Dialect,
    Insert,
    Select,
    String,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
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

from app.core.database.statements import PreparedStatement
from app.models import LIVE, UNSETTLED, AgentVersion, MessageStatus, Role, ToolVersion
from app.services.turns.context.prompt import LOADED_BYTES, LOADED_MESSAGES
from app.services.turns.records import HistoryMessage
from app.services.turns.storage.tables import (
    PERSONA_COLUMNS,
    agents,
    is_attempt,
    is_message,
    lease_end,
    messages,
    same_named_parameters,
    sessions,
    turn_events,
    turns,
)

_other = turns.alias("other")
_snapshot = sessions.alias("seen")
_SETTLED_COLUMNS = (
    "status", "ended_at", "error_code", "error_detail", "finish_reason", "model", "prompt_tokens",
    "cached_tokens", "completion_tokens", "speech_in_seconds", "speech_out_characters", "timings",
    "cost_nanos", "usage_estimated", "stop_reason",
)  # fmt: skip


def _unsettled(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the session's unsettled turns, as of after the lock."""
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


def _touch_session_stmt() -> Update:
    """Update the session's row, which locks it until the transaction ends."""
    return (
        update(sessions)
        .where(sessions.c.workspace_id == bindparam("workspace_id_"))
        .where(sessions.c.id == bindparam("session_id_"))
        .values(updated_at=bindparam("now"))
    )


def _unchanged_since_snapshot() -> ColumnElement[bool]:
    """Return whether the session's row, now locked, is unchanged since the snapshot."""
    # Every transaction that changes a session's turns updates its row, which changes its `xmin`.
    xmin: ColumnElement[Any] = literal_column("seen.xmin")
    snapshot_xmin = (
        select(xmin)
        .select_from(_snapshot)
        .where(_snapshot.c.workspace_id == bindparam("workspace_id_"))
        .where(_snapshot.c.id == bindparam("session_id_"))
        .scalar_subquery()
    )
    return literal_column("sessions.xmin") == snapshot_xmin


def _allocate_seq_stmt(_dialect: Dialect) -> Update:
    """Lock the session and take two numbers; tell its agent's newest version."""
    return (
        _touch_session_stmt()
        .values(last_seq=sessions.c.last_seq + 2)
        .returning(
            sessions.c.last_seq,
            sessions.c.agent_id,
            sessions.c.user_id,
            _agent_column(agents.c.version),
            _agent_column(agents.c.archived_at),
        )
    )


def _agent_column(column: ColumnElement[Any]) -> ColumnElement[Any]:
    its_agent = and_(
        agents.c.workspace_id == bindparam("workspace_id_"), agents.c.id == sessions.c.agent_id
    )
    return select(column).where(its_agent).correlate(sessions).scalar_subquery()


def _lock_session_stmt(_dialect: Dialect) -> Update:
    """Lock the session's row; waits for other transactions that change its turns."""
    return _touch_session_stmt().returning(sessions.c.id)


def _persona_stmt(_dialect: Dialect) -> ClauseElement:
    """Select the persona columns of an agent version."""
    return select(*PERSONA_COLUMNS).where(
        AgentVersion.workspace_id == bindparam("workspace_id_"),
        AgentVersion.agent_id == bindparam("agent_id_"),
        AgentVersion.version == bindparam("version_"),
    )


def _tool_version_stmt(_dialect: Dialect) -> ClauseElement:
    """Select the definition of a version of a tool."""
    return select(ToolVersion.definition).where(
        ToolVersion.workspace_id == bindparam("workspace_id_"),
        ToolVersion.tool_id == bindparam("tool_id_"),
        ToolVersion.version == bindparam("tool_version_"),
    )


def _insert_live_turn_stmt(dialect: Dialect) -> Insert:
    """Insert a live turn with its lease."""
    return _insert_turn_stmt(lease_end(dialect))


def _insert_queued_turn_stmt(_dialect: Dialect) -> Insert:
    """Insert a queued turn without a lease."""
    return _insert_turn_stmt(null())


def _insert_turn_stmt(lease: ColumnElement[Any]) -> Insert:
    names = (
        "workspace_id", "id", "session_id", "agent_version", "modality", "status",
        "user_message_id", "message_id", "user_seq", "created_at", "owner_id", "started_at",
        "agent_id", "key_id", "user_id", "reserved_day", "reserved_tokens", "reserved_nanos",
        "reserved_buckets", "request",
    )  # fmt: skip
    return insert(turns).values(
        **same_named_parameters(*names),
        attempt=1,
        recoveries=0,
        step_count=0,
        lease_expires_at=lease,
    )


def _insert_messages_stmt(_dialect: Dialect) -> Insert:
    """Insert the user message and the empty assistant message."""

    def row(**parameters: str) -> dict[str, Any]:
        # Types are explicit, because SQLAlchemy infers them for the first row only.
        shared = ("workspace_id", "session_id", "turn_id", "created_at")
        names = dict(zip(shared, shared, strict=True)) | parameters
        return {
            column: bindparam(name, type_=messages.c[column].type) for column, name in names.items()
        }

    user = row(
        id="user_message_id", seq="user_seq", modality="modality", status="user_status",
        content="content",
    )  # fmt: skip
    assistant = row(id="message_id", seq="seq", modality="output")
    user["role"] = Role.USER
    assistant |= {"role": Role.ASSISTANT, "status": MessageStatus.IN_PROGRESS, "content": ""}
    return insert(messages).values([user, assistant])


def _history_stmt(dialect: Dialect) -> ClauseElement:
    """Select the newest messages up to the turn's user message, newest first."""
    return _newest_messages_stmt(dialect, messages.c.seq <= bindparam("user_seq_"))


def _history_and_waiting_stmt(dialect: Dialect) -> ClauseElement:
    """Select the session's newest messages, each with the session's number of unsettled turns.

    Only messages with a `seq` above `after_`: earlier ones may be cached.
    """
    condition = messages.c.seq > bindparam("after_")
    return _newest_messages_stmt(dialect, condition, _unsettled().label("waiting"))


def _newest_messages_stmt(
    dialect: Dialect, condition: ColumnElement[bool], *more: ColumnElement[Any]
) -> Select[Any]:
    """Select up to 200 messages, of 4 MB together beside the newest."""
    is_postgres = dialect.name == "postgresql"
    text_length = func.octet_length if is_postgres else func.length
    # As text, because most messages have none, and few of those that have are shown.
    parts = cast(messages.c.parts, Text) if is_postgres else type_coerce(messages.c.parts, String)
    shown_text = func.coalesce(messages.c.heard_content, messages.c.content)
    # Prompts leave out what broke off, which may be the largest of all.
    broke_off = and_(messages.c.role == Role.ASSISTANT, messages.c.status == MessageStatus.FAILED)
    newest = (
        select(
            messages.c.seq,
            messages.c.role,
            messages.c.status,
            case((broke_off, ""), else_=shown_text).label("content"),
            messages.c.modality,
            parts.label("parts"),
            (
                case((broke_off, 0), else_=text_length(messages.c.content))
                + func.coalesce(text_length(parts), 0)
            ).label("size"),
        )
        .where(
            messages.c.workspace_id == bindparam("workspace_id_"),
            messages.c.session_id == bindparam("session_id_"),
            condition,
        )
        .order_by(messages.c.seq.desc())
        .limit(LOADED_MESSAGES)
        .subquery("newest")
    )
    before = (func.sum(newest.c.size).over(order_by=newest.c.seq.desc()) - newest.c.size).label(
        "before"
    )
    sized = select(*newest.c, before).subquery("sized")
    columns: dict[str, ColumnElement[Any]] = {
        "seq": sized.c.seq,
        "role": type_coerce(sized.c.role, String),
        "status": type_coerce(sized.c.status, String),
        "content": sized.c.content,
        "modality": type_coerce(sized.c.modality, String),
        "parts": sized.c.parts,
    }
    return (
        select(*(columns[name] for name in HistoryMessage._fields), *more)
        .where(sized.c.before < LOADED_BYTES)
        .order_by(sized.c.seq.desc())
    )


def _settle_turn_stmt(_dialect: Dialect) -> Update:
    """Settle the turn if its attempt is current; return the number of other unsettled turns."""
    return (
        update(turns)
        .where(is_attempt(), text(UNSETTLED))
        .values(owner_id=None, lease_expires_at=None, **same_named_parameters(*_SETTLED_COLUMNS))
        .returning(_unsettled(_other.c.id != bindparam("turn_id_")).label("waiting"))
    )


def _settle_message_stmt(_dialect: Dialect) -> Update:
    """Update a message with the answer or the transcript, and its status."""
    return update(messages).where(is_message()).values(**same_named_parameters("content", "status"))


def _settle_answer_stmt(_dialect: Dialect) -> Update:
    """Update the answer with its text, its status, and the time of its end."""
    columns = same_named_parameters("content", "status", "created_at")
    return update(messages).where(is_message()).values(**columns)


def _settle_parts_stmt(_dialect: Dialect) -> Update:
    """Update the answer with its parts and its value, beside what `SETTLE_ANSWER` stores."""
    return update(messages).where(is_message()).values(**same_named_parameters("parts", "output"))


def _hold_turn_stmt(_dialect: Dialect) -> Update:
    """Lock the turn's row if the turn is live and its attempt is current."""
    return (
        update(turns)
        .where(is_attempt(), text(LIVE))
        .values(attempt=bindparam("attempt_"))
        .returning(turns.c.id)
    )


def _insert_events_stmt(_dialect: Dialect) -> Insert:
    """Insert a batch of events."""
    names = ("workspace_id", "turn_id", "last_number", "events", "created_at")
    return insert(turn_events).values(**same_named_parameters(*names))


ALLOCATE_SEQ = PreparedStatement(_allocate_seq_stmt, _unchanged_since_snapshot)
LOCK_SESSION = PreparedStatement(_lock_session_stmt)
PERSONA = PreparedStatement(_persona_stmt)
TOOL_VERSION = PreparedStatement(_tool_version_stmt)
INSERT_LIVE_TURN = PreparedStatement(_insert_live_turn_stmt)
INSERT_QUEUED_TURN = PreparedStatement(_insert_queued_turn_stmt)
INSERT_MESSAGES = PreparedStatement(_insert_messages_stmt)
HISTORY = PreparedStatement(_history_stmt)
HISTORY_AND_WAITING = PreparedStatement(_history_and_waiting_stmt)
SETTLE_TURN = PreparedStatement(_settle_turn_stmt)
SETTLE_ANSWER = PreparedStatement(_settle_answer_stmt)
SETTLE_PARTS = PreparedStatement(_settle_parts_stmt)
SETTLE_MESSAGE = PreparedStatement(_settle_message_stmt)
HOLD_TURN = PreparedStatement(_hold_turn_stmt)
INSERT_EVENTS = PreparedStatement(_insert_events_stmt)
