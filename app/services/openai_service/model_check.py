"""Whether a provider answers, takes the key and has a model: asked before the first turn is."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from app.services.openai_service.deprecations import announced_end, read_ends
from app.services.ports import ProviderError
from app.services.provider_http.client import ProviderClient
from app.services.provider_http.parse import parse_json

_MAX_LIST_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What a provider says of one model."""

    error: ProviderError | None = None
    """Set where the list of models could not be had."""
    is_listed: bool | None = None
    """`None` where the provider's list cannot be read."""
    shutdown_date: date | None = None
    is_shut_down: bool = False


async def check_model(client: ProviderClient, setting: str, model: str) -> ModelCheck:
    """Ask for the list of models, which costs nothing. Raises nothing of the provider."""
    try:
        with await client.get("models", setting=setting) as answer:
            listed: Any = parse_json(await answer.read_all(_MAX_LIST_BYTES))
    except ProviderError as error:
        return ModelCheck(error)
    try:
        names = {str(entry["id"]) for entry in listed["data"]}
    except (KeyError, TypeError):
        names = None
    end = read_ends(listed).get(model) or announced_end(client, model)
    return ModelCheck(
        is_listed=None if names is None else model in names,
        shutdown_date=end,
        is_shut_down=end is not None and end <= datetime.now(UTC).date(),
    )
