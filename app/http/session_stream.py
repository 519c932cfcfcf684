"""A session as one JSON document, streamed from the database in pages: its size is not bounded."""

from base64 import b64encode
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from uuid import UUID

import orjson
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.responses import StreamingResponse

from app.core.database import Database
from app.core.security import Caller
from app.http.audio_response import export_audio
from app.http.turn_shape import history_message, turn_shape
from app.models import Message, Modality, Session, Turn
from app.schemas.chat import AgentRead, MessageRead, SessionRead
from app.schemas.files import ExportedFile, FileRead
from app.services import crud
from app.services.file_port import FileStoreUnavailable
from app.services.files import rows
from app.services.files.errors import FileNotFound
from app.services.files.library import FileLibrary

PAGE_MESSAGES = 16
"""A message has 200,000 characters at most, and an answer more: a page takes some megabytes."""
_PAGE_TURNS = 200
_JSON = "application/json"


def history_response(database: Database, caller: Caller, session: Session) -> StreamingResponse:
    """Return the response of `GET /sessions/{id}`, a `SessionHistory`."""

    async def chunks() -> AsyncGenerator[bytes]:
        yield _json(SessionRead.model_validate(session))[:-1] + b',"messages":['
        async for chunk in _history(database, caller, session):
            yield chunk
        yield b"]}"

    return StreamingResponse(chunks(), media_type=_JSON)


def export_response(  # noqa: PLR0913  # what is exported, and with what
    database: Database,
    caller: Caller,
    session: Session,
    agent: AgentRead,
    *,
    with_audio: bool,
    library: FileLibrary | None = None,
) -> StreamingResponse:
    """Return the response of `GET /sessions/{id}/export`, a `SessionExport`.

    With `library` it has the bytes of files.
    """
    disposition = f'attachment; filename="session-{session.id}.json"'
    return StreamingResponse(
        _export(database, caller, session, agent, with_audio=with_audio, library=library),
        media_type=_JSON,
        headers={"Content-Disposition": disposition},
    )


def bulk_export_response(
    database: Database,
    caller: Caller,
    sessions: Sequence[tuple[Session, AgentRead]],
    headers: Mapping[str, str],
) -> StreamingResponse:
    """Return the response of `GET /sessions/export`: a `SessionExport` on each line."""

    async def lines() -> AsyncGenerator[bytes]:
        for session, agent in sessions:
            async for chunk in _export(database, caller, session, agent, with_audio=False):
                yield chunk
            yield b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=headers)


async def _export(  # noqa: PLR0913  # as `export_response`
    database: Database,
    caller: Caller,
    session: Session,
    agent: AgentRead,
    *,
    with_audio: bool,
    library: FileLibrary | None = None,
) -> AsyncGenerator[bytes]:
    head = _json(SessionRead.model_validate(session))
    yield b'{"session":' + head + b',"summary":' + orjson.dumps(session.summary)
    yield b',"agent":' + _json(agent) + b',"messages":['
    with_sound: set[UUID] = set()
    async for chunk in _messages(database, caller, session, with_sound):
        yield chunk
    yield b'],"turns":['
    turns_with_sound: list[Turn] = []
    is_first = True
    async for page in _turns(database, caller, session):
        turns_with_sound += [turn for turn in page if turn.id in with_sound]
        yield _joined(map(turn_shape, page), is_first=is_first)
        is_first = False
    yield b'],"audio":['
    for number, turn in enumerate(turns_with_sound if with_audio else ()):
        async with database.reading_page(caller.identity) as db:
            audio = await export_audio(db, turn)
        yield _joined([audio], is_first=not number)
    yield b'],"files":['
    async with database.reading_page(caller.identity) as db:
        used = await rows.list_of_session(db, session.workspace_id, session.id)
    for number, file in enumerate(used):
        data = None
        if library:
            async with database.reading_page(caller.identity) as db:
                data = await _file_data(db, caller, file.id, library)
        shape = FileRead.model_validate(file).model_dump()
        yield _joined([ExportedFile(**shape, data=data)], is_first=not number)
    yield b"]}"


async def _messages(
    database: Database, caller: Caller, session: Session, with_sound: set[UUID] | None = None
) -> AsyncGenerator[bytes]:
    """Yield the messages; add the ids of turns of which one was spoken to `with_sound`."""
    page: Sequence[Message] = ()
    last_seq = 0
    while not last_seq or len(page) == PAGE_MESSAGES:
        async with database.reading_page(caller.identity) as db:
            page = await crud.list_messages(db, session, after_seq=last_seq, limit=PAGE_MESSAGES)
            text = _joined(map(MessageRead.model_validate, page), is_first=not last_seq)
        if with_sound is not None:
            spoken = (each.turn_id for each in page if each.modality is Modality.VOICE)
            with_sound.update(filter(None, spoken))
        if not page:
            return
        yield text
        last_seq = page[-1].seq


async def _history(database: Database, caller: Caller, session: Session) -> AsyncGenerator[bytes]:
    last_seq, is_full = 0, True
    while is_full:
        async with database.reading_page(caller.identity) as db:
            page = await crud.list_history(db, session, after_seq=last_seq, limit=PAGE_MESSAGES)
            text = _joined((history_message(*row) for row in page), is_first=not last_seq)
        if not page:
            return
        yield text
        last_seq, is_full = page[-1][0].seq, len(page) == PAGE_MESSAGES


async def _turns(
    database: Database, caller: Caller, session: Session
) -> AsyncGenerator[Sequence[Turn]]:
    last_seq = 0
    while True:
        async with database.reading_page(caller.identity) as db:
            page = await crud.list_turns(db, session, after_seq=last_seq, limit=_PAGE_TURNS)
        if not page:
            return
        yield page
        last_seq = page[-1].user_seq


async def _file_data(
    db: AsyncSession, caller: Caller, file_id: UUID, library: FileLibrary
) -> str | None:
    """Return the bytes of a file as base64; `None` where they are not stored any more."""
    try:
        file = await rows.get_file(db, caller, file_id, with_data=True)
        return b64encode(await library.read(file)).decode()
    except (FileNotFound, FileStoreUnavailable):
        return None


def _joined(items: Iterable[BaseModel], *, is_first: bool) -> bytes:
    text = b",".join(map(_json, items))
    return text if is_first else b"," + text


def _json(shape: BaseModel) -> bytes:
    return shape.model_dump_json().encode()
