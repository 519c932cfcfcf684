"""`/turns`: what became of a message, also after its request has ended."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter

from app.models import Turn
from app.routers.deps import Caller, ReadingDb
from app.routers.strict_route import StrictRoute
from app.schemas.chat import MessageRead, TurnError, TurnRead, TurnWithMessage, UsageRead
from app.services import crud

router = APIRouter(prefix="/turns", tags=["turns"], route_class=StrictRoute)


@router.get("/{turn_id}", response_model=TurnWithMessage)
async def get_turn(turn_id: UUID, db: ReadingDb, caller: Caller) -> dict[str, Any]:
    """Get a turn and its answer: how a client learns what it missed."""
    turn, message = await crud.get_turn(db, caller.workspace_id, turn_id)
    return turn_shape(turn).model_dump() | {"message": MessageRead.model_validate(message)}


def turn_shape(turn: Turn) -> TurnRead:
    """Return a turn as clients see it."""
    error = (
        TurnError(code=turn.error_code, detail=turn.error_detail or "") if turn.error_code else None
    )
    usage = UsageRead(
        prompt_tokens=turn.prompt_tokens,
        cached_tokens=turn.cached_tokens,
        completion_tokens=turn.completion_tokens,
        cost_usd=None,
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
