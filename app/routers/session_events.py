"""`/sessions/{id}/events`: a conversation and its turns, as they change on any server."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from app.core.errors import AppError
from app.core.security import Caller as CallerIdentity
from app.http.deps import Caller, SessionEventsDep
from app.http.endpoint_route import EndpointRoute
from app.http.event_stream import DRAINING_FRAME, HEARTBEAT, error_frame
from app.http.frame_stream import FrameStream
from app.http.openapi import SESSION_STREAM_CONTENT
from app.models import Session, Turn
from app.schemas.chat import SessionRead, SessionTurn
from app.services.turns.errors import ServerDraining
from app.services.turns.session_events import SessionEvents

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=EndpointRoute)

LONGEST_SECONDS = 3600


@router.get(
    "/{session_id}/events",
    response_class=Response,
    responses={200: {"content": SESSION_STREAM_CONTENT, "description": "The session's events"}},
)
async def follow_session(
    session_id: UUID,
    events: SessionEventsDep,
    caller: Caller,
    seconds: Annotated[
        float,
        Query(ge=0, le=LONGEST_SECONDS, description="When the stream ends; 0: once all is said."),
    ] = LONGEST_SECONDS,
) -> Response:
    """Follow a conversation: its fields, and its turns as they begin, change and end.

    The stream begins with the session as it is and with its turns that have not ended, so that
    a client which connects again misses nothing. The words of an answer are events of its turn:
    `GET /turns/{id}/events`.
    """
    frames = _frames(events, caller, session_id, seconds)
    return FrameStream(frames, error_frame, _leave, {})


async def _frames(
    events: SessionEvents, caller: CallerIdentity, session_id: UUID, seconds: float
) -> AsyncGenerator[bytes]:
    has_begun = False
    try:
        async with aclosing(events.follow(caller, session_id, seconds)) as batches:
            async for news in batches:
                yield b"".join(map(_frame, news)) or HEARTBEAT
                has_begun = True
    except ServerDraining:
        yield DRAINING_FRAME
    except AppError as error:
        if not has_begun:
            raise
        yield error_frame(error)


def _frame(changed: Session | Turn) -> bytes:
    if isinstance(changed, Session):
        name, data = b"session.changed", SessionRead.model_validate(changed).model_dump_json()
    else:
        name, data = b"turn.changed", SessionTurn.model_validate(changed).model_dump_json()
    return b"event: %s\ndata: %s\n\n" % (name, data.encode())


async def _leave() -> None:
    """Do nothing: a session goes on without its followers."""
