"""What clients receive about usage."""

from datetime import date
from uuid import UUID

from app.schemas.base import Response


class UsageRowRead(Response):
    """Sums of one group; what the report is not grouped by is `null`."""

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
