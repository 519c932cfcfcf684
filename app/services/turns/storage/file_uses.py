"""Transaction scripts that let messages use files, which then stay as long as the session."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from sqlalchemy import Dialect, Update, bindparam, update
from sqlalchemy.sql import ClauseElement

from app.core.database.statements import PreparedStatement, upsert
from app.core.database.transactions import TransactionScript
from app.services.files.errors import file_not_found
from app.services.turns.parts import AttachedPart, FilePart, ImagePart, InputPart, encode_parts
from app.services.turns.records import TurnRecord
from app.services.turns.storage import turn_statements
from app.services.turns.storage.tables import files, same_named_parameters, session_files


def use_in_message(record: TurnRecord, parts: Sequence[InputPart]) -> TransactionScript[None]:
    """Store the parts of a turn's user message, and keep their files.

    Raises `FileNotFound` where one was deleted meanwhile.
    """
    attached = [part for part in parts if isinstance(part, (ImagePart, FilePart))]
    yield from use_in_session(record.workspace_id, record.session_id, attached)
    stored = turn_statements.SETTLE_PARTS(
        workspace_id_=record.workspace_id,
        message_id_=record.user_message_id,
        parts=encode_parts(parts),
    )
    yield [stored]


def use_in_session(
    workspace_id: UUID, session_id: UUID, attached: Iterable[AttachedPart]
) -> TransactionScript[None]:
    """Keep files as long as a session, which the caller has locked. Raises `FileNotFound`."""
    ids = sorted({part.file_id for part in attached})  # two that want the same wait in order
    if not ids:
        return
    kept = yield [
        _KEEP(workspace_id_=workspace_id, file_id_=UUID(file_id), expires_at=None)
        for file_id in ids
    ]
    if not all(kept):
        raise file_not_found()
    yield [
        _LINK(workspace_id=workspace_id, session_id=session_id, file_id=UUID(file_id))
        for file_id in ids
    ]


def _keep_stmt(_dialect: Dialect) -> Update:
    return (
        update(files)
        .where(
            files.c.workspace_id == bindparam("workspace_id_"),
            files.c.id == bindparam("file_id_"),
            files.c.is_stored,
        )
        .values(**same_named_parameters("expires_at"))
        .returning(files.c.id)
    )


def _link_stmt(dialect: Dialect) -> ClauseElement:
    names = session_files.c.keys()
    return (
        upsert(dialect, session_files)
        .values(**same_named_parameters(*names))
        .on_conflict_do_nothing()
    )


_KEEP = PreparedStatement(_keep_stmt)
_LINK = PreparedStatement(_link_stmt)
