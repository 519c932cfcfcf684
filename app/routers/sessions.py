"""`/sessions`: open conversations, read them back, search, fork, export and delete them."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import StringConstraints

from app.models import Message, Modality, Session
from app.routers.deps import Caller, Db, ReadingDb, Turns
from app.routers.idempotency import Key, once
from app.routers.pages import Cursor, Limit, cursor_id, cursor_number, link_next
from app.routers.sound import sound_shape
from app.routers.strict_route import StrictRoute
from app.routers.turns import turn_shape
from app.schemas.base import NonBlank
from app.schemas.chat import (
    AgentRead,
    MessageRead,
    SessionCreate,
    SessionExport,
    SessionFork,
    SessionHistory,
    SessionRead,
    SessionUpdate,
    UserId,
)
from app.services import crud
from app.services.identity import audit

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=StrictRoute)

SearchWords = Annotated[NonBlank, StringConstraints(max_length=200)]


@router.post("", response_model=SessionRead, status_code=HTTPStatus.CREATED)
async def create_session(body: SessionCreate, db: Db, caller: Caller, key: Key) -> Response:
    """Open a conversation with an agent."""

    async def create() -> Session:
        return await crud.create_session(
            db,
            caller,
            body.agent_id,
            title=body.title,
            user_id=body.user_id,
            metadata_=body.metadata,
        )

    return await once(key, db, caller, SessionRead, create)


@router.get("", response_model=list[SessionRead])
async def list_sessions(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    agent_id: UUID | None = None,
    user_id: UserId | None = None,
    q: Annotated[
        SearchWords | None, Query(description="Words in the title or in one message.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[Session]:
    """List conversations, the newest first."""
    sessions = await crud.list_sessions(
        db,
        caller,
        agent_id=agent_id,
        user_id=user_id,
        search=q,
        before_id=cursor_id(cursor),
        limit=limit + 1,
    )
    return link_next(request, response, sessions, limit, lambda session: session.id)


@router.get("/{session_id}", response_model=SessionHistory)
async def get_session(session_id: UUID, db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """Get a conversation with its full history, oldest message first."""
    session = await crud.get_session(db, caller, session_id)
    messages = await crud.list_messages(db, session)
    return SessionRead.model_validate(session).model_dump() | {"messages": messages}


@router.patch("/{session_id}", response_model=SessionRead)
async def update_session(session_id: UUID, body: SessionUpdate, db: Db, caller: Caller) -> Session:
    """Rename a conversation, or change its user or metadata."""
    changes: dict[str, Any] = body.model_dump(include=body.model_fields_set)
    if "metadata" in changes:
        changes["metadata_"] = changes.pop("metadata")
    return await crud.update_session(db, caller, session_id, **changes)


@router.delete("/{session_id}", status_code=HTTPStatus.NO_CONTENT)
async def delete_session(session_id: UUID, db: Db, turns: Turns, caller: Caller) -> None:
    """Delete a conversation and everything in it, for good."""
    await crud.delete_session(db, caller, session_id)
    turns.known.histories.forget((caller.workspace_id, session_id))
    audit.record(db, caller, audit.Action.SESSION_DELETED, session_id)


@router.get("/{session_id}/messages", response_model=list[MessageRead])
async def list_messages(  # noqa: PLR0913  # one per query parameter
    session_id: UUID,
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[Message]:
    """List a conversation's messages in pages, oldest first."""
    session = await crud.get_session(db, caller, session_id)
    messages = await crud.list_messages(
        db, session, after_seq=cursor_number(cursor) or 0, limit=limit + 1
    )
    return link_next(request, response, messages, limit, lambda message: message.seq)


@router.post("/{session_id}/fork", response_model=SessionRead, status_code=HTTPStatus.CREATED)
async def fork_session(
    session_id: UUID, body: SessionFork, db: Db, caller: Caller, key: Key
) -> Response:
    """Copy a conversation up to a message, to go on differently from there."""

    async def fork() -> Session:
        return await crud.fork_session(db, caller, session_id, up_to_seq=body.up_to_seq)

    return await once(key, db, caller, SessionRead, fork)


@router.get("/{session_id}/export")
async def export_session(
    session_id: UUID,
    response: Response,
    db: Db,
    caller: Caller,
    *,
    audio: Annotated[bool, Query(description="With the sound of voice turns, as base64.")] = False,
) -> SessionExport:
    """Get everything that is stored of a conversation, as one JSON document."""
    session = await crud.get_session(db, caller, session_id)
    agent = await crud.get_agent(db, caller.workspace_id, session.agent_id)
    messages = await crud.list_messages(db, session)
    turns = await crud.list_turns(db, session)
    audit.record(db, caller, audit.Action.SESSION_EXPORTED, session_id)
    response.headers["Content-Disposition"] = f'attachment; filename="session-{session_id}.json"'
    return SessionExport(
        session=SessionRead.model_validate(session),
        agent=AgentRead.model_validate(agent),
        messages=[MessageRead.model_validate(message) for message in messages],
        turns=[turn_shape(turn) for turn in turns],
        audio=[
            await sound_shape(db, turn)
            for turn in turns
            if audio and turn.modality is Modality.VOICE
        ],
    )
