"""`/turns`: the state, events and audio of a turn, also after its request has ended."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AwareDatetime, Field

from app.http.audio_response import audio_response
from app.http.deps import Accounts, Caller, DatabaseDep, ReadingDb, Turns, Voice
from app.http.endpoint_route import EndpointRoute
from app.http.event_stream import EventStream
from app.http.openapi import BINARY_SCHEMA, EVENT_STREAM_CONTENT, MP3_CONTENT, VOICE_HEADERS
from app.http.pagination import Cursor, Limit, cursor_id, link_next
from app.http.turn_shape import turn_shape, turn_with_message
from app.models import TurnStatus
from app.schemas.chat import TurnCancel, TurnRead, TurnWithMessage
from app.services import crud
from app.services.turns import audio_store, is_complete
from app.services.voice.errors import AudioNotStored

router = APIRouter(prefix="/turns", tags=["turns"], route_class=EndpointRoute)


_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
Moment = Annotated[AwareDatetime, Field(ge=_EARLIEST, le=_LATEST)]


@router.get("", response_model=list[TurnRead])
async def list_turns(  # noqa: PLR0913  # one per query parameter
    request: Request,
    response: Response,
    db: ReadingDb,
    caller: Caller,
    *,
    status: TurnStatus | None = None,
    session_id: UUID | None = None,
    agent_id: UUID | None = None,
    created_from: Annotated[
        Moment | None, Query(alias="from", description="The earliest `created_at`, with a zone.")
    ] = None,
    created_before: Annotated[
        Moment | None, Query(alias="to", description="Only turns created before this moment.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Sequence[TurnRead]:
    """List turns, the newest first: how to find those that failed."""
    turn_filter = crud.TurnFilter(status, session_id, agent_id, created_from, created_before)
    turns = await crud.find_turns(
        db, caller, turn_filter, before_id=cursor_id(cursor), limit=limit + 1
    )
    page = link_next(request, response, turns, limit, lambda turn: turn.id)
    return [turn_shape(turn) for turn in page]


@router.get("/{turn_id}")
async def get_turn(
    turn_id: UUID,
    turns: Turns,
    data: DatabaseDep,
    caller: Caller,
    wait_seconds: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            description="How long to wait for the turn's end, or for a change of a turn that waits "
            "for an action.",
        ),
    ] = 0,
) -> TurnWithMessage:
    """Get a turn with its answer, for example after a lost connection.

    With `wait_seconds` the response comes when the turn has ended or waits for an action; where it
    waits for one already, when it goes on or has ended; or after that time as it is.
    """
    if wait_seconds:
        with anyio.move_on_after(wait_seconds):
            live = await turns.find(caller, turn_id)
            if live.record.status is TurnStatus.REQUIRES_ACTION:
                await turns.actions.wait_until_taken(live)
            else:
                await turns.wait(live)
    async with data.reading() as db:
        turn, message = await crud.get_turn(db, caller, turn_id)
        return await turn_with_message(db, turn, message)


@router.get(
    "/{turn_id}/events",
    response_class=Response,
    responses={
        200: {"content": EVENT_STREAM_CONTENT, "description": "The turn's events"},
        204: {"description": "The turn has ended, and there is no event above `after`"},
    },
)
async def follow_turn(  # noqa: PLR0913, PLR0917  # one per parameter and dependency
    turn_id: UUID,
    turns: Turns,
    data: DatabaseDep,
    caller: Caller,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> Response:
    """Follow a turn's events above `after` (or `Last-Event-ID`), live or after its end."""
    if last_event_id and last_event_id.isdecimal():
        after = min(int(last_event_id), 2**31 - 1)
    live = await turns.find(caller, turn_id)
    if await is_complete(turns, data, live, after):
        return Response(status_code=204)  # with which an `EventSource` stops reconnecting
    return EventStream(engine=turns, database=data, live=live, after=after)


@router.get(
    "/{turn_id}/audio",
    name="get_turn_audio",
    response_class=Response,
    responses={
        200: {
            "content": MP3_CONTENT,
            "description": "The spoken answer as MP3",
            "headers": VOICE_HEADERS,
        },
        206: {"content": MP3_CONTENT, "description": "The requested range of the MP3"},
    },
)
async def listen_to_turn(
    turn_id: UUID,
    voice: Voice,
    caller: Caller,
    range_: Annotated[str | None, Header(alias="Range", max_length=100)] = None,
    token: Annotated[
        str | None,
        Query(
            max_length=100,
            description="A session token, for `<audio src>`, which cannot send a header.",
        ),
    ] = None,
) -> Response:
    """Hear a turn's answer from its beginning: while it is spoken, or as it is stored."""
    answer = await voice.find_answer(caller, turn_id)
    await answer.first_sound()
    # A page of another site plays what its session token opens.
    headers = {"Cross-Origin-Resource-Policy": "cross-origin"} if token else {}
    return audio_response(answer, range_, headers)


@router.get(
    "/{turn_id}/recording",
    response_class=Response,
    responses={
        200: {
            "content": {"audio/*": {"schema": BINARY_SCHEMA}},
            "description": "The recording, in the format that it was sent in",
        }
    },
)
async def get_turn_recording(turn_id: UUID, data: DatabaseDep, caller: Caller) -> Response:
    """Get the recording that a turn answers, as it was sent."""
    async with data.reading() as db:
        turn, _ = await crud.get_turn(db, caller, turn_id)
        found = await audio_store.read_recording(
            await db.connection(), caller.workspace_id, turn.id
        )
    if found is None:
        raise AudioNotStored("No recording of this turn is stored.")
    recording, _ = found
    headers = {"Content-Disposition": f'attachment; filename="{turn_id}.{recording.format.value}"'}
    return Response(recording.data, media_type=recording.format.media_type, headers=headers)


@router.post("/{turn_id}/retry")
async def retry_turn(
    turn_id: UUID, turns: Turns, data: DatabaseDep, caller: Caller, accounts: Accounts
) -> TurnWithMessage:
    """Run a failed turn again, as the next attempt of the same turn and message.

    A turn that runs or waits already is not changed. A turn whose tools have done something, and
    one that has not failed, are refused with `turn-not-retryable`: send the message again instead.
    """
    live = await turns.find(caller, turn_id)
    await turns.actions.retry(live.record, accounts.of(caller))
    async with data.reading() as db:
        turn, message = await crud.get_turn(db, caller, turn_id)
        return await turn_with_message(db, turn, message)


@router.post("/{turn_id}/cancel")
async def cancel_turn(
    turn_id: UUID, turns: Turns, data: DatabaseDep, caller: Caller, body: TurnCancel | None = None
) -> TurnWithMessage:
    """Cancel a turn on whichever server runs it; its text so far is stored.

    A turn that has ended is not changed. With `played_ms`, the part of a spoken answer that was
    heard is stored as `heard_content`, which later prompts use; this also works after the turn's
    end, since playing audio takes longer than synthesizing it.
    """
    await turns.cancel(caller, turn_id, played_ms=body.played_ms if body else None)
    async with data.reading() as db:
        turn, message = await crud.get_turn(db, caller, turn_id)
        return await turn_with_message(db, turn, message)
