"""Transaction scripts for the summary of a session: what its prompts leave out."""

from uuid import UUID

from sqlalchemy import Dialect, Update, bindparam, or_, select, update
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement
from app.core.database.transactions import TransactionScript, fetch_one
from app.core.value_objects import value_object
from app.services.turns.records import TurnRecord
from app.services.turns.storage.tables import same_named_parameters, sessions


@value_object(frozen=True, slots=True)
class Summary:
    """A summary of the messages up to `last_seq`; 0 and empty where there is none."""

    content: str = ""
    last_seq: int = 0


def find(workspace_id: UUID, session_id: UUID) -> TransactionScript[Summary]:
    """Return the summary of a session."""
    rows = yield from fetch_one(_SUMMARY(workspace_id_=workspace_id, session_id_=session_id))
    content, last_seq = rows[0] if rows else (None, None)
    return Summary(content or "", last_seq or 0)


def store(record: TurnRecord, content: str, last_seq: int) -> TransactionScript[None]:
    """Store the summary of a session, unless one of more messages is there."""
    yield [
        _STORE(
            workspace_id_=record.workspace_id,
            session_id_=record.session_id,
            summary=content,
            summary_seq=last_seq,
        )
    ]


def _summary_stmt(_dialect: Dialect) -> ClauseElement:
    return select(sessions.c.summary, sessions.c.summary_seq).where(
        sessions.c.workspace_id == bindparam("workspace_id_"),
        sessions.c.id == bindparam("session_id_"),
    )


def _store_stmt(_dialect: Dialect) -> Update:
    is_older = or_(
        sessions.c.summary_seq.is_(None), sessions.c.summary_seq < bindparam("summary_seq")
    )
    return (
        update(sessions)
        .where(
            sessions.c.workspace_id == bindparam("workspace_id_"),
            sessions.c.id == bindparam("session_id_"),
            is_older,
        )
        .values(**same_named_parameters("summary", "summary_seq"))
    )


_SUMMARY = PreparedStatement(_summary_stmt)
_STORE = PreparedStatement(_store_stmt)
