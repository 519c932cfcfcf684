"""A stored turn, its steps and its tool calls as clients see them."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.models import WAITING_STATUSES, Message, ToolCall, Turn
from app.schemas.chat import (
    HistoryMessageRead,
    MessageRead,
    TurnError,
    TurnRead,
    TurnUsageRead,
    TurnWithMessage,
)
from app.schemas.tool_calls import (
    RequiredActionRead,
    ResolutionRead,
    StepRead,
    ToolCallDetail,
    ToolCallError,
    ToolCallRead,
)
from app.services import crud
from app.services.turns.steps import wanted_action
from app.services.usage.pricing import usd


def turn_shape(turn: Turn) -> TurnRead:
    """Return a turn as clients see it."""
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
        error=_error(turn),
        finish_reason=turn.finish_reason,
        stop_reason=turn.stop_reason,
        model=turn.model,
        usage=_usage(turn),
        timings=turn.timings or {},
    )


def history_message(message: Message, turn: Turn | None) -> HistoryMessageRead:
    """Return a message as histories show it; `turn` is the one that it answers, if any."""
    return HistoryMessageRead(
        **MessageRead.model_validate(message).model_dump(),
        attempt=turn.attempt if turn else None,
        model=turn.model if turn else None,
        usage=_usage(turn) if turn else None,
        timings=(turn.timings or {}) if turn else None,
        error=_error(turn) if turn else None,
    )


def _error(turn: Turn) -> TurnError | None:
    if not turn.error_code:
        return None
    return TurnError(code=turn.error_code, detail=turn.error_detail or "")


def _usage(turn: Turn) -> TurnUsageRead:
    return TurnUsageRead(
        prompt_tokens=turn.prompt_tokens,
        cached_tokens=turn.cached_tokens,
        completion_tokens=turn.completion_tokens,
        cost_usd=usd(turn.cost_nanos),
        estimated=bool(turn.usage_estimated),
        speech_in_seconds=turn.speech_in_seconds,
        speech_out_characters=turn.speech_out_characters,
    )


def tool_call_shape(call: ToolCall) -> ToolCallRead:
    """Return a call as clients see it."""
    return ToolCallRead.model_validate(_fields(call))


def tool_call_detail(call: ToolCall) -> ToolCallDetail:
    """Return a call with its whole result."""
    return ToolCallDetail.model_validate(_fields(call) | {"stored_result": call.stored_result})


def _fields(call: ToolCall) -> dict[str, Any]:
    names = ToolCallRead.model_fields.keys() - {"error", "resolution"}
    error = (
        ToolCallError(code=call.error_code, detail=call.error_detail or "")
        if call.error_code
        else None
    )
    resolution = ResolutionRead.model_validate(call.resolution) if call.resolution else None
    return {name: getattr(call, name) for name in names} | {
        "error": error,
        "resolution": resolution,
    }


async def turn_with_message(db: AsyncSession, turn: Turn, message: Message) -> TurnWithMessage:
    """Return a turn with its answer, its steps and what it waits for, as clients see it."""
    steps, calls = (
        await crud.read_steps(db, turn.workspace_id, turn.id) if turn.step_count else ((), ())
    )
    return TurnWithMessage(
        **turn_shape(turn).model_dump(),
        message=MessageRead.model_validate(message),
        steps=[StepRead.model_validate(step) for step in steps],
        tool_calls=[tool_call_shape(call) for call in calls],
        required_actions=[
            _required_action(call) for call in calls if call.status in WAITING_STATUSES
        ],
    )


def _required_action(call: ToolCall) -> RequiredActionRead:
    action, by = wanted_action(call.status, call.approval_by)
    return RequiredActionRead.model_validate(
        {
            "call_id": call.id,
            "action": action,
            "name": call.name,
            "arguments": call.arguments,
            "by": by,
            "expires_at": call.expires_at,
            "question": call.question if action == "answer" else None,
        }
    )
