"""`/turns`: what became of a message, also after its request has ended."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response

from app.models import Turn
from app.routers.deps import Caller, Data, ReadingDb, Turns, Voice
from app.routers.sound import sound_response
from app.routers.streams import SSE_CONTENT, EventStream
from app.routers.strict_route import StrictRoute
from app.schemas.chat import (
    MessageRead,
    TurnCancel,
    TurnError,
    TurnRead,
    TurnUsageRead,
    TurnWithMessage,
)
from app.services import crud
from app.services.usage.tariff import usd

router = APIRouter(prefix="/turns", tags=["turns"], route_class=StrictRoute)


@router.get("/{turn_id}", response_model=TurnWithMessage)
async def get_turn(turn_id: UUID, db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """Get a turn and its answer: how a client learns what it missed."""
    turn, message = await crud.get_turn(db, caller, turn_id)
    return turn_shape(turn).model_dump() | {"message": MessageRead.model_validate(message)}


@router.get(
    "/{turn_id}/events",
    response_class=Response,
    responses={200: {"content": SSE_CONTENT}},
)
async def follow_turn(  # noqa: PLR0913, PLR0917  # what an endpoint can ask for
    turn_id: UUID,
    turns: Turns,
    data: Data,
    caller: Caller,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> EventStream:
    """Follow a turn's events above `after` (or `Last-Event-ID`), live or after its end."""
    if last_event_id and last_event_id.isdecimal():
        after = min(int(last_event_id), 2**31 - 1)
    live = await turns.find(caller, turn_id)
    return EventStream(engine=turns, database=data, live=live, after=after)


@router.get(
    "/{turn_id}/audio",
    response_class=Response,
    responses={
        200: {"content": {"audio/mpeg": {}}, "description": "The spoken answer as MP3"},
        206: {"content": {"audio/mpeg": {}}, "description": "The range of it that was asked for"},
    },
)
async def listen_to_turn(
    turn_id: UUID,
    voice: Voice,
    caller: Caller,
    range_: Annotated[str | None, Header(alias="Range", max_length=100)] = None,
    token: Annotated[  # noqa: ARG001  # the door has read it
        str | None,
        Query(max_length=100, description="A session token: `<audio src>` sends no header."),
    ] = None,
) -> Response:
    """Hear a turn's answer from its beginning: while it is spoken, or as it is stored."""
    answer = await voice.listen(caller, turn_id)
    await answer.first_sound()
    return sound_response(answer, range_)


@router.post("/{turn_id}/cancel", response_model=TurnWithMessage)
async def cancel_turn(
    turn_id: UUID, turns: Turns, data: Data, caller: Caller, body: TurnCancel | None = None
) -> dict[str, Any]:
    """End a turn wherever it runs; its text so far is kept. A settled one stays as it is.

    With `played_ms`, what was heard of a spoken answer is kept beside it as `heard_content`, and
    the next prompts use that; also after the turn's end, since sound plays longer than it is made.
    """
    await turns.cancel(caller, turn_id, played_ms=body.played_ms if body else None)
    async with data.reading() as db:
        turn, message = await crud.get_turn(db, caller, turn_id)
    return turn_shape(turn).model_dump() | {"message": MessageRead.model_validate(message)}


def turn_shape(turn: Turn) -> TurnRead:
    """Return a turn as clients see it."""
    error = (
        TurnError(code=turn.error_code, detail=turn.error_detail or "") if turn.error_code else None
    )
    usage = TurnUsageRead(
        prompt_tokens=turn.prompt_tokens,
        cached_tokens=turn.cached_tokens,
        completion_tokens=turn.completion_tokens,
        cost_usd=usd(turn.cost_nanos),
        estimated=bool(turn.usage_estimated),
        speech_in_seconds=turn.speech_in_seconds,
        speech_out_characters=turn.speech_out_characters,
    )
    return TurnRead(
        id=turn.id,
        session_id=turn.session_id,
        status=turn.status,
        modality=turn.modality,
        attempt=turn.attempt,
        agent_version=turn.agent_version,
        user_message_id=turn.user_message_id,
        created_at=turn.created_at,
        started_at=turn.started_at,
        ended_at=turn.ended_at,
        error=error,
        finish_reason=turn.finish_reason,
        model=turn.model,
        usage=usage,
        speech_in_seconds=turn.speech_in_seconds,
        speech_out_characters=turn.speech_out_characters,
        timings=turn.timings or {},
    )
