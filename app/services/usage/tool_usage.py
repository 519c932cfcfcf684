"""How tools were used: one row for each tool of a turn, for reports grouped by tool."""

from typing import Any, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Float, Select, Table, and_, case, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import CallStatus, KeptToolUsage, ToolCall, Turn, new_id

COLUMNS = (
    "created_at", "agent_id", "key_id", "user_id", "model", "tool_id", "tool_name",
    "tool_calls", "tool_failures", "tool_ms", "cost_nanos",
)  # fmt: skip
"""Columns of `kept`, in the order of `tool_rows`."""
kept = cast("Table", KeptToolUsage.__table__)

_turns = cast("Table", Turn.__table__)
_calls = cast("Table", ToolCall.__table__)
_FAILURES = (CallStatus.FAILED, CallStatus.UNKNOWN)


def tool_rows(*, on_postgres: bool) -> Select[Any]:
    """Select turns with the calls of each of their tools, summed up.

    A call counts where it was begun, or where the caller's own code gave its output; one that was
    denied, or that nobody acted on, does not.
    """
    of_turn = [_turns.c[name] for name in COLUMNS[:5]]
    was_made = or_(
        _calls.c.attempt > 0, _calls.c.status.in_((CallStatus.COMPLETED, CallStatus.FAILED))
    )
    return (
        select(
            *of_turn,
            _calls.c.tool_id,
            func.max(_calls.c.name).label("tool_name"),
            func.count().label("tool_calls"),
            func.sum(case((_calls.c.status.in_(_FAILURES), 1), else_=0)).label("tool_failures"),
            func.coalesce(func.sum(_milliseconds(on_postgres=on_postgres)), 0).label("tool_ms"),
            func.sum(_calls.c.cost_nanos).label("cost_nanos"),
        )
        .join(
            _calls,
            and_(_calls.c.workspace_id == _turns.c.workspace_id, _calls.c.turn_id == _turns.c.id),
        )
        .where(_calls.c.tool_id.is_not(None), was_made)
        .group_by(_turns.c.workspace_id, _turns.c.id, *of_turn, _calls.c.tool_id)
    )


def _milliseconds(*, on_postgres: bool) -> ColumnElement[float]:
    """Return the expression of how long a call took; NULL where it was not begun, or not ended."""
    began, ended = _calls.c.started_at, _calls.c.ended_at
    if on_postgres:
        return func.extract("epoch", ended - began).cast(Float) * 1000
    return (func.julianday(ended) - func.julianday(began)) * 86_400_000


async def keep_of_session(db: AsyncSession, workspace_id: UUID, session_id: UUID) -> None:
    """Copy how a session used tools to `KeptToolUsage`, before it is deleted."""
    on_postgres = db.get_bind().dialect.name == "postgresql"
    query = tool_rows(on_postgres=on_postgres).where(
        _turns.c.workspace_id == workspace_id, _turns.c.session_id == session_id
    )
    rows = [
        {**row, "workspace_id": workspace_id, "id": new_id()}
        for row in (await db.execute(query)).mappings()
    ]
    if rows:
        await db.execute(insert(kept), rows)
