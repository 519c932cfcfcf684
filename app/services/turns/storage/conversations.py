"""The script before acceptance: open or extend the session of a turn of another dialect."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Dialect, Insert, Update, bindparam, case, false, insert, or_, select, update
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, Statement, upsert
from app.core.database.transactions import TransactionScript, fetch_one
from app.models import MessageStatus, Modality, new_id, utc_now
from app.services.crud import session_not_found
from app.services.turns.context.prompt import trailing_calls
from app.services.turns.errors import (
    ConversationMoved,
    OtherAgentAnswers,
    ToolCallsUnanswered,
    ToolResultUnknown,
)
from app.services.turns.parts import FilePart, ImagePart, InputPart, ToolResultPart, encode_parts
from app.services.turns.records import HistoryMessage
from app.services.turns.requests import Conversation, PostedMessage
from app.services.turns.storage import file_uses
from app.services.turns.storage.agent_lookup import find_agent
from app.services.turns.storage.tables import messages, same_named_parameters, sessions


def begin(
    workspace_id: UUID, session_id: UUID, user_id: str | None, conversation: Conversation
) -> TransactionScript[None]:
    """Open the session, or lock it and give it its agent; insert the messages before the turn's.

    `user_id` is the end user who asks. Raises `AgentNotFound`, `AgentArchived`, `SessionNotFound`,
    `OtherAgentAnswers`, and `ConversationMoved` where it does not stand at `last_seq`, or another
    transaction opened it meanwhile.
    """
    agent_id, _ = yield from find_agent(workspace_id, conversation.agent)
    session = {"workspace_id_": workspace_id, "session_id_": session_id}
    now, count = utc_now(), len(conversation.earlier)
    if conversation.opens:
        opened = yield from fetch_one(
            _OPEN(
                workspace_id=workspace_id,
                id=session_id,
                agent_id=agent_id,
                user_id=user_id,
                metadata={},
                last_seq=count,
                is_hidden=conversation.opens.is_hidden,
                alias=conversation.opens.alias,
                created_at=now,
                updated_at=now,
            )
        )
        if not opened:
            raise _moved()
        last_seq = count
    else:
        rows = yield from fetch_one(_EXTEND(**session, agent_id_=agent_id, count_=count, now_=now))
        if not rows:
            yield from _refuse(session, user_id)
        last_seq, owner = rows[0]
        if user_id not in {None, owner}:
            raise session_not_found()
        if conversation.last_seq not in {None, last_seq - count}:
            raise _moved()
    if count:
        yield _insert_stmts(workspace_id, session_id, conversation.earlier, last_seq - count, now)
        parts = [part for line in conversation.earlier for part in line.parts or ()]
        attached = [part for part in parts if isinstance(part, (ImagePart, FilePart))]
        yield from file_uses.use_in_session(workspace_id, session_id, attached)


def _insert_stmts(
    workspace_id: UUID,
    session_id: UUID,
    posted: Sequence[PostedMessage],
    after_seq: int,
    now: datetime,
) -> Sequence[Statement]:
    """Return the statements that insert messages without a turn behind `after_seq`."""
    return [
        _INSERT(
            workspace_id=workspace_id,
            session_id=session_id,
            id=new_id(),
            turn_id=None,
            seq=seq,
            role=line.role,
            modality=Modality.TEXT,
            status=MessageStatus.COMPLETED,
            content=line.content,
            parts=encode_parts(line.parts) if line.parts else None,
            created_at=now,
        )
        for seq, line in enumerate(posted, start=after_seq + 1)
    ]


def require_results(
    history: Sequence[HistoryMessage],
    conversation: Conversation,
    parts: Sequence[InputPart],
) -> None:
    """Raise where a call of the caller's tools has no result, or a result answers no call.

    `history` ends with the turn's message, which has `parts`.
    """
    requested, answered = trailing_calls(history)
    own = (part for line in conversation.earlier for part in line.parts or ())
    given = {part.call_id for part in (*own, *parts) if isinstance(part, ToolResultPart)}
    if requested - answered:
        raise ToolCallsUnanswered(
            f"The answer before this message called tools: {len(requested - answered)} results are "
            "missing."
        )
    if (given & answered) - requested:
        raise ToolResultUnknown("A tool's result has the id of no call in the answer before it.")


def _refuse(session: dict[str, UUID], user_id: str | None) -> TransactionScript[None]:
    rows = yield from fetch_one(_FIND(**session))
    if rows and user_id in {None, rows[0][0]}:
        raise OtherAgentAnswers(
            "This conversation is one with another agent: name that one, or begin a new one."
        )
    raise session_not_found()


def _moved() -> ConversationMoved:
    return ConversationMoved("The conversation went on meanwhile: send the request again.")


def _is_session() -> tuple[Any, Any]:
    return (
        sessions.c.workspace_id == bindparam("workspace_id_"),
        sessions.c.id == bindparam("session_id_"),
    )


def _open_stmt(dialect: Dialect) -> ClauseElement:
    names = (
        "workspace_id", "id", "agent_id", "user_id", "metadata", "last_seq", "is_hidden", "alias",
        "created_at", "updated_at",
    )  # fmt: skip
    return (
        upsert(dialect, sessions)
        .values(**same_named_parameters(*names))
        .on_conflict_do_nothing()
        .returning(sessions.c.id)
    )


def _extend_stmt(_dialect: Dialect) -> Update:
    agent_id = bindparam("agent_id_", type_=sessions.c.agent_id.type)
    return (
        update(sessions)
        .where(*_is_session(), or_(sessions.c.agent_id.is_(None), sessions.c.agent_id == agent_id))
        .values(
            agent_id=agent_id,
            is_hidden=case((sessions.c.agent_id.is_(None), false()), else_=sessions.c.is_hidden),
            last_seq=sessions.c.last_seq + bindparam("count_"),
            updated_at=bindparam("now_", type_=sessions.c.updated_at.type),
        )
        .returning(sessions.c.last_seq, sessions.c.user_id)
    )


def _insert_stmt(_dialect: Dialect) -> Insert:
    names = (
        "workspace_id", "session_id", "id", "turn_id", "seq", "role", "modality", "status",
        "content", "parts", "created_at",
    )  # fmt: skip
    return insert(messages).values(**same_named_parameters(*names))


_OPEN = PreparedStatement(_open_stmt)
_EXTEND = PreparedStatement(_extend_stmt)
_INSERT = PreparedStatement(_insert_stmt)
_FIND = PreparedStatement(lambda _: select(sessions.c.user_id).where(*_is_session()))
