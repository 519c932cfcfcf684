"""Read the ledger of tool calls; only the turn engine writes it.

Rows of another workspace or of another end user are treated as absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Select, and_, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.security import Caller
from app.models import WAITING_CALLS, WAITING_STATUSES, CallStatus, Session, ToolCall, TurnStep
from app.services.crud.sessions import visible_sessions


@dataclass(frozen=True, slots=True)
class ToolCallFilter:
    """Which calls are listed; `None` is any."""

    status: CallStatus | None = None
    session_id: UUID | None = None
    agent_id: UUID | None = None


async def find_tool_calls(
    db: AsyncSession,
    caller: Caller,
    call_filter: ToolCallFilter,
    *,
    before_id: UUID | None,
    limit: int,
) -> Sequence[ToolCall]:
    """Return up to `limit` of the caller's tool calls older than `before_id`, the newest first."""
    query = _visible(caller)
    if call_filter.session_id:
        query = query.where(ToolCall.session_id == call_filter.session_id)
    if call_filter.agent_id:
        query = query.where(ToolCall.agent_id == call_filter.agent_id)
    if call_filter.status:
        query = query.where(ToolCall.status == call_filter.status)
        if (
            call_filter.status in WAITING_STATUSES
        ):  # lets the planner see that a partial index applies
            query = query.where(text(WAITING_CALLS))
    if before_id:
        query = query.where(ToolCall.id < before_id)
    return (await db.scalars(query.order_by(ToolCall.id.desc()).limit(limit))).all()


async def find_tool_call(db: AsyncSession, caller: Caller, call_id: UUID) -> ToolCall | None:
    """Return one tool call that the caller may see."""
    return await db.scalar(_visible(caller).where(ToolCall.id == call_id))


async def read_steps(
    db: AsyncSession, workspace_id: UUID, turn_id: UUID
) -> tuple[Sequence[TurnStep], Sequence[ToolCall]]:
    """Return the stored steps of a turn and their calls, in order."""
    steps = await db.scalars(
        select(TurnStep)
        .where(TurnStep.workspace_id == workspace_id, TurnStep.turn_id == turn_id)
        .order_by(TurnStep.number)
    )
    calls = await db.scalars(
        select(ToolCall)
        .where(ToolCall.workspace_id == workspace_id, ToolCall.turn_id == turn_id)
        .order_by(ToolCall.step, ToolCall.index)
    )
    return steps.all(), calls.all()


def _visible(caller: Caller) -> Select[ToolCall]:
    query = select(ToolCall).where(ToolCall.workspace_id == caller.workspace_id)
    if caller.sees_all_sessions:
        return query
    is_its_session = and_(
        Session.workspace_id == ToolCall.workspace_id, Session.id == ToolCall.session_id
    )
    return query.join(Session, is_its_session).where(visible_sessions(caller))
