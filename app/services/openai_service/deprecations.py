"""Models that their provider will shut down: named at start, for later is too late."""

import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from app.services.ports import ProviderError
from app.services.provider_http.client import ProviderClient
from app.services.provider_http.parse import parse_json

logger = logging.getLogger(__name__)

_NEAR = timedelta(days=120)
_MAX_LIST_BYTES = 4 << 20
ANNOUNCED_ENDS: Final = {
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
    client: ProviderClient, models: Mapping[str, str], *, today: date | None = None
) -> None:
    """Log a warning for each model whose announced end is near or past.

    `models` are names of models by the setting that chose each. A provider that cannot be asked
    is not worth a warning here: the first turn will tell.
    """
    ends = dict(ANNOUNCED_ENDS) if client.is_openai else {}
    ends |= await _listed(client)
    today = today or datetime.now(UTC).date()
    for setting, model in models.items():
        end = ends.get(model)
        if end is None or end - today > _NEAR:
            continue
        verb = "was shut down" if end <= today else "will be shut down"
        logger.warning("The provider says that %s %s on %s: change %s.", model, verb, end, setting)


def announced_end(client: ProviderClient, model: str) -> date | None:
    """Return the day on which OpenAI shuts a model of its own down, as far as it was announced."""
    return ANNOUNCED_ENDS.get(model) if client.is_openai else None


async def _listed(client: ProviderClient) -> dict[str, date]:
    """Return the ends that the provider's own list of models has."""
    try:
        with await client.get("models", setting="OPENAI_BASE_URL") as answer:
            listed = parse_json(await answer.read_all(_MAX_LIST_BYTES))
    except ProviderError:
        return {}
    return read_ends(listed)


def read_ends(listed: Any) -> dict[str, date]:  # noqa: ANN401  # JSON
    """Return the ends that a provider's list of models names, by model."""
    ends: dict[str, date] = {}
    try:
        entries: list[dict[str, Any]] = listed["data"]
        for entry in entries:
            if end := _read_date(entry.get("shutdown_date")):
                ends[str(entry["id"])] = end
    except (AttributeError, KeyError, TypeError):  # a list of another shape
        return ends
    return ends


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
