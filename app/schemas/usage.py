"""Schemas of usage reports."""

from datetime import date, datetime
from uuid import UUID

from app.schemas.base import Response


class UsageRowRead(Response):
    """The sums of one group; fields by which the report is not grouped are `null`.

    Grouped by tool, a row has the calls of one tool: `turns` is in how many turns it was used,
    `cost_usd` what the calls cost, and the counts of tokens and speech are 0.
    """

    day: date | None
    agent_id: UUID | None
    key_id: str | None
    user_id: str | None
    model: str | None
    turns: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    speech_in_seconds: float
    speech_out_characters: int
    cost_usd: float | None
    unpriced_turns: int
    tool_id: UUID | None
    tool_name: str | None
    tool_calls: int | None
    tool_failures: int | None
    tool_ms: float | None


class BudgetRead(Response):
    """How one budget stands with one resource; `limit` and `remaining` are `null` without one."""

    bucket: str
    kind: str
    key_id: str | None
    user_id: str | None
    session_id: UUID | None
    resource: str
    limit: float | None
    used: float
    reserved: float
    remaining: float | None
    reset_at: datetime | None
