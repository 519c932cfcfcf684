"""`/sessions`: create, read, search, fork, export and delete conversations."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from types import NoneType
from typing import Annotated, Any, cast
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, StringConstraints
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.http.deps import Caller, DatabaseDep, Db, Files, ReadingDb, Storage, Turns
from app.http.endpoint_route import EndpointRoute
from app.http.idempotency import Key, idempotent
from app.http.pagination import Cursor, Limit, cursor_id, cursor_moment, cursor_number, link_next
from app.http.read_only import changeable
from app.http.session_stream import (
    PAGE_MESSAGES,
    bulk_export_response,
    export_response,
    history_response,
)
from app.http.turn_shape import history_message
from app.models import Session
from app.schemas.base import NonBlank, storable
from app.schemas.chat import (
    AgentRead,
    HistoryMessageRead,
    MessageOrder,
    SearchMatchRead,
    SessionCreate,
    SessionFork,
    SessionHistory,
    SessionListed,
    SessionRead,
    SessionUpdate,
    UserId,
)
from app.schemas.exports import SessionExport
from app.services import crud
from app.services.identity import audit
from app.services.usage.storage import ROW_BYTES, size_of

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=EndpointRoute)


async def _listing_db(request: Request, caller: Caller) -> AsyncIterator[AsyncSession]:
    """Yield the transaction of a list; one without an index has one of its own kind."""
    database: Database = request.state.database
    given = request.query_params
    searches = "q" in given or given.get("order") == crud.SessionOrder.UPDATED
    async with database.searching(caller.identity) if searches else database.reading() as db:
        yield db


async def _creating_db(request: Request, caller: Caller) -> AsyncIterator[AsyncSession]:
    """Yield the transaction of a new session; one with many messages waits for others like it."""
    database: Database = request.state.database
    is_small = len(await request.body()) <= _SMALL_SESSION_BYTES
    async with database.transaction() if is_small else database.copying(caller.identity) as db:
        yield db


async def _copying_db(request: Request, caller: Caller) -> AsyncIterator[AsyncSession]:
    database: Database = request.state.database
    async with database.copying(caller.identity) as db:
        yield db


TOTAL_COUNT = "X-Total-Count"
_SMALL_SESSION_BYTES = 64 * 1024
ListingDb = Annotated[AsyncSession, Depends(_listing_db, scope="function")]
CreatingDb = Annotated[AsyncSession, Depends(_creating_db, scope="function")]
CopyingDb = Annotated[AsyncSession, Depends(_copying_db, scope="function")]


def _require_flat(given: str) -> str:
    try:
        members: object = orjson.loads(given)
    except orjson.JSONDecodeError:
        members = None
    flat = (str, int, float, bool, NoneType)
    values = cast("dict[str, object]", members).values() if isinstance(members, dict) else None
    if values is None or not all(isinstance(value, flat) for value in values):
        raise ValueError('must be a JSON object of texts, numbers and booleans: {"plan": "pro"}')
    if "\\u0000" in given:
        raise ValueError("must not contain the NUL character")
    return given


MetadataFilter = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_require_flat)]
Moment = Annotated[AwareDatetime, AfterValidator(storable)]
Hidden = Annotated[
    bool,
    Query(description="Whether to include the sessions of responses that name no conversation."),
]
SearchWords = Annotated[NonBlank, StringConstraints(max_length=200)]


@router.post("", response_model=SessionRead, status_code=HTTPStatus.CREATED)
async def create_session(
    body: SessionCreate, db: CreatingDb, caller: Caller, key: Key, storage: Storage
) -> Response:
    """Create a conversation with an agent, or import one with its `messages`."""

    async def create() -> Session:
        size_bytes = ROW_BYTES + len(orjson.dumps(body.metadata))
        size_bytes += sum(ROW_BYTES + len(message.content.encode()) for message in body.messages)
        await storage.require_room(caller.workspace_id, size_bytes, db)
        session = await crud.create_session(
            db,
            caller,
            body.agent_id,
            title=body.title,
            user_id=body.user_id,
            metadata_=body.metadata,
        )
        messages = [crud.ImportedMessage(**message.model_dump()) for message in body.messages]
        await crud.import_messages(db, caller, session, messages)
        return session

    return await idempotent(key, db, caller, SessionRead, create)


@router.get(
    "",
    response_model=list[SessionListed],
    responses={
        200: {
            "headers": {
                TOTAL_COUNT: {
                    "schema": {"type": "integer"},
                    "description": "With `preview=true`, on the first page: how many sessions "
                    f"there are; {crud.MOST_COUNTED} means that there may be more.",
                }
            }
        }
    },
)
async def list_sessions(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ListingDb,
    caller: Caller,
    *,
    agent_id: UUID | None = None,
    user_id: UserId | None = None,
    q: Annotated[
        SearchWords | None,
        Query(description="Words that all occur in the title or in one message."),
    ] = None,
    updated_after: Annotated[
        Moment | None, Query(description="Only sessions that changed after this time.")
    ] = None,
    metadata: Annotated[
        MetadataFilter | None,
        Query(description='Members that the metadata must have, as JSON: `{"plan": "pro"}`.'),
    ] = None,
    order: Annotated[
        crud.SessionOrder, Query(description="By which time; the newest is first.")
    ] = crud.SessionOrder.CREATED,
    hidden: Hidden = False,
    preview: Annotated[
        bool,
        Query(
            description="Whether to add the first words of each session, what `q` found, and the "
            f"header `{TOTAL_COUNT}`."
        ),
    ] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[SessionListed]:
    """List conversations, newest first."""
    session_filter = crud.SessionFilter(
        agent_id=agent_id,
        user_id=user_id,
        search=q,
        updated_after=updated_after,
        metadata=orjson.loads(metadata) if metadata else None,
        with_hidden=hidden,
    )
    if order is crud.SessionOrder.CREATED:
        place = cursor_id(cursor)
        after = crud.ListPosition(place) if place else None
    else:
        moment = cursor_moment(cursor)
        after = crud.ListPosition(moment[1], moment[0]) if moment else None
    found = await crud.list_sessions(
        db, caller, session_filter, order=order, after=after, limit=limit + 1
    )

    def position(session: Session) -> UUID | tuple[datetime, UUID]:
        is_created = order is crud.SessionOrder.CREATED
        return session.id if is_created else (session.updated_at, session.id)

    sessions = link_next(request, response, found, limit, position)
    if not preview:
        return [_listed(session) for session in sessions]
    if cursor is None:
        total = len(sessions)
        if len(found) > limit:
            total = await crud.count_sessions(db, caller, session_filter)
        response.headers[TOTAL_COUNT] = str(total)
    ids = [session.id for session in sessions]
    words = await crud.first_words(db, caller.workspace_id, ids)
    matches: Mapping[UUID, crud.SearchMatch] = {}
    if q:
        matches = await crud.find_matches(db, caller.workspace_id, ids, q)
    return [
        _listed(session, words.get(session.id), matches.get(session.id)) for session in sessions
    ]


def _listed(
    session: Session, preview: str | None = None, match: crud.SearchMatch | None = None
) -> SessionListed:
    return SessionListed(
        **SessionRead.model_validate(session).model_dump(),
        preview=preview,
        match=SearchMatchRead(seq=match.seq, snippet=match.snippet) if match else None,
    )


@router.get(
    "/export",
    response_class=Response,
    responses={
        200: {
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
            "description": "One `SessionExport` as JSON on each line, without audio",
        }
    },
)
async def export_sessions(  # noqa: PLR0913  # one per query parameter
    request: Request,
    data: DatabaseDep,
    db: Db,
    caller: Caller,
    *,
    agent_id: UUID | None = None,
    user_id: UserId | None = None,
    hidden: Hidden = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Export conversations, newest first: one JSON document on each line (NDJSON).

    The `Link` header has the next page. Audio is exported session by session.
    """
    links = Response()
    place = cursor_id(cursor)
    found = await crud.list_sessions(
        db,
        caller,
        crud.SessionFilter(agent_id=agent_id, user_id=user_id, with_hidden=hidden),
        after=crud.ListPosition(place) if place else None,
        limit=limit + 1,
    )
    sessions = link_next(request, links, found, limit, lambda session: session.id)
    agents = {
        agent_id: AgentRead.model_validate(await crud.get_agent(db, caller.workspace_id, agent_id))
        for agent_id in {session.agent_id for session in sessions}
        if agent_id
    }
    for session in sessions:
        audit.record(db, caller, audit.Action.SESSION_EXPORTED, session.id)
    lines = [(session, agents[session.agent_id]) for session in sessions if session.agent_id]
    headers = {"Link": links.headers["Link"]} if "Link" in links.headers else {}
    return bulk_export_response(data, caller, lines, headers)


@router.get("/{session_id}", response_model=SessionHistory)
async def get_session(
    session_id: UUID,
    db: ReadingDb,
    data: DatabaseDep,
    caller: Caller,
    *,
    messages: Annotated[bool, Query(description="Whether to include the history.")] = True,
) -> dict[str, Any] | Response:
    """Get a conversation with its full history, oldest message first."""
    session = await crud.get_session(db, caller, session_id)
    if messages and session.last_seq > PAGE_MESSAGES:
        return history_response(data, caller, session)
    history = await crud.list_history(db, session) if messages else None
    shapes = None if history is None else [history_message(*row) for row in history]
    return SessionRead.model_validate(session).model_dump() | {"messages": shapes}


@router.patch("/{session_id}", response_model=SessionRead)
async def update_session(
    session_id: UUID, body: SessionUpdate, db: Db, caller: Caller, storage: Storage
) -> Session:
    """Rename a conversation, change its user or metadata, or move it to another agent.

    Fields that only the server changes are let through where they are as they were.
    """
    current = await crud.get_session(db, caller, session_id)
    before_bytes = size_of(current)
    changes = changeable(body, SessionRead.model_validate(current))
    if "metadata" in changes:
        changes["metadata_"] = changes.pop("metadata")
    session = await crud.update_session(db, caller, session_id, **changes)
    more_bytes = size_of(session) - before_bytes
    if more_bytes > 0:
        await storage.require_room(caller.workspace_id, more_bytes, db)
    return session


@router.delete("/{session_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_session(session_id: UUID, data: DatabaseDep, turns: Turns, caller: Caller) -> None:
    """Delete a conversation and everything in it, for good; its running turns are cancelled."""
    async with data.transaction() as db:
        await crud.delete_session(db, caller, session_id)
        audit.record(db, caller, audit.Action.SESSION_DELETED, session_id)
    turns.discard_session(caller.workspace_id, session_id)


@router.get("/{session_id}/messages", response_model=list[HistoryMessageRead])
async def list_messages(  # noqa: PLR0913  # one per query parameter
    session_id: UUID,
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    order: Annotated[
        MessageOrder, Query(description="`asc`: the oldest message first; `desc`: the newest.")
    ] = MessageOrder.OLDEST_FIRST,
    before: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="Only messages with a lower `seq`.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[HistoryMessageRead]:
    """List a conversation's messages in pages, from its beginning or from its end."""
    session = await crud.get_session(db, caller, session_id)
    seq, is_newest_first = cursor_number(cursor), order is MessageOrder.NEWEST_FIRST
    history = await crud.list_history(
        db,
        session,
        after_seq=0 if is_newest_first else seq or 0,
        before_seq=(seq or before) if is_newest_first else before,
        newest_first=is_newest_first,
        limit=limit + 1,
    )
    page = link_next(request, response, history, limit, lambda row: row[0].seq)
    return [history_message(*row) for row in page]


@router.post("/{session_id}/fork", response_model=SessionRead, status_code=HTTPStatus.CREATED)
async def fork_session(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    session_id: UUID, body: SessionFork, db: CopyingDb, caller: Caller, key: Key, storage: Storage
) -> Response:
    """Copy a conversation up to a message, to continue it differently from there."""

    async def fork() -> Session:
        size_bytes = await crud.size_of_messages(db, caller, session_id, up_to_seq=body.up_to_seq)
        original = await crud.get_session(db, caller, session_id)
        await storage.require_room(caller.workspace_id, size_bytes + size_of(original), db)
        return await crud.fork_session(db, caller, session_id, up_to_seq=body.up_to_seq)

    return await idempotent(key, db, caller, SessionRead, fork)


@router.get("/{session_id}/export", response_model=SessionExport)
async def export_session(  # noqa: PLR0913  # what an endpoint can ask for
    session_id: UUID,
    data: DatabaseDep,
    db: Db,
    caller: Caller,
    *,
    audio: Annotated[
        bool, Query(description="Whether to include the audio of voice turns, as base64.")
    ] = False,
    files: Annotated[
        bool, Query(description="Whether to include the bytes of files, as base64.")
    ] = False,
    library: Files,
) -> Response:
    """Export all stored data of a conversation as one JSON document."""
    session = await crud.get_session(db, caller, session_id)
    if session.agent_id is None:
        raise crud.session_not_found()
    agent = await crud.get_agent(db, caller.workspace_id, session.agent_id)
    audit.record(db, caller, audit.Action.SESSION_EXPORTED, session_id)
    return export_response(
        data,
        caller,
        session,
        AgentRead.model_validate(agent),
        with_audio=audio,
        library=library if files else None,
    )
