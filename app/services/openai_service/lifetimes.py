"""Models that their provider will shut down: named at start, for later is too late."""

import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from app.services.openai_service.client import OpenAIClient
from app.services.openai_service.parse import parse_json
from app.services.ports import ProviderError

logger = logging.getLogger(__name__)

_NEAR = timedelta(days=120)
_MAX_LIST_BYTES = 4 << 20
_ANNOUNCED: Final = {
    "gpt-5": date(2026, 12, 11),
    "gpt-5-mini": date(2026, 12, 11),
    "tts-1": date(2027, 1, 6),
    "tts-1-hd": date(2027, 1, 6),
    "gpt-4o-mini-tts": date(2027, 1, 6),
    "gpt-4o": date(2027, 1, 14),
    "gpt-4o-mini": date(2027, 1, 14),
    "gpt-4.1": date(2027, 1, 14),
    "gpt-4.1-mini": date(2027, 1, 14),
    "whisper-1": date(2027, 2, 26),
    "gpt-4o-transcribe": date(2027, 2, 26),
    "gpt-4o-mini-transcribe": date(2027, 2, 26),
}
"""What OpenAI had announced by November 2026, for when its list does not tell."""


async def warn_of_shutdowns(
    client: OpenAIClient, models: Mapping[str, str], *, today: date | None = None
) -> None:
    """Log a warning for each model whose announced end is near or past.

    `models` are names of models by the setting that chose each. A provider that cannot be asked
    is not worth a warning here: the first turn will tell.
    """
    ends = dict(_ANNOUNCED) if client.is_openai else {}
    ends |= await _listed(client)
    today = today or datetime.now(UTC).date()
    for setting, model in models.items():
        end = ends.get(model)
        if end is None or end - today > _NEAR:
            continue
        verb = "was shut down" if end <= today else "will be shut down"
        logger.warning("The provider says that %s %s on %s: change %s.", model, verb, end, setting)


async def _listed(client: OpenAIClient) -> dict[str, date]:
    """Return the ends that the provider's own list of models has."""
    try:
        with await client.get("models", setting="OPENAI_BASE_URL") as answer:
            listed = parse_json(await answer.read_all(_MAX_LIST_BYTES))
    except ProviderError:
        return {}
    found: dict[str, date] = {}
    try:
        entries: list[dict[str, Any]] = listed["data"]
        for entry in entries:
            if end := _read_date(entry.get("shutdown_date")):
                found[str(entry["id"])] = end
    except (AttributeError, KeyError, TypeError):  # a list of another shape
        return found
    return found


def _read_date(value: object) -> date | None:
    """Read `2027-01-06`, a time, or seconds since 1970."""
    try:
        if isinstance(value, str):
            return date.fromisoformat(value[:10])
        if isinstance(value, (int, float)):
            return datetime.fromtimestamp(value, UTC).date()
    except (ValueError, OverflowError, OSError):
        pass
    return None
