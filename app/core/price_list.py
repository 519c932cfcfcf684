"""What models cost, in US dollars, and how settings say it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import orjson

PriceList = Mapping[str, Sequence["ModelPrice"]]
"""The prices of each model, by its name; of several the newest that is not in the future counts."""

_HIGHEST = Decimal(1_000_000)


class WrongPrices(ValueError):
    """Prices that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What one model costs from a day on. `None` is unknown, never free."""

    since: date = date.min
    prompt: Decimal | None = None
    """For a million tokens."""
    cached: Decimal | None = None
    """For a million prompt tokens from the provider's cache; `None` is as `prompt`."""
    completion: Decimal | None = None
    """For a million tokens."""
    speech_in_minute: Decimal | None = None
    """For a minute of sound that is transcribed."""
    speech_out_characters: Decimal | None = None
    """For a million characters that are spoken."""


_AMOUNTS = tuple(field.name for field in fields(ModelPrice) if field.name != "since")


def parse_prices(document: str | bytes) -> PriceList:
    """Read `{"model": {"prompt": 0.2, "completion": 1, "since": "2026-11-22"}}`, or lists of such.

    Raises `WrongPrices`.
    """
    try:
        parsed: object = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise WrongPrices(f"is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise WrongPrices("must be a JSON object with the names of models")
    prices = cast("dict[str, object]", parsed)
    return {model: _of_model(model, given) for model, given in prices.items()}


def _of_model(model: str, given: object) -> list[ModelPrice]:
    entries = cast("list[object]", given) if isinstance(given, list) else [given]
    return sorted((_price(model, entry) for entry in entries), key=lambda price: price.since)


def _price(model: str, entry: object) -> ModelPrice:
    if not isinstance(entry, dict):
        raise WrongPrices(f"has no object of prices for {model}")
    given = cast("dict[str, Any]", entry)
    unknown = set(given) - {*_AMOUNTS, "since"}
    if unknown:
        raise WrongPrices(f"names {min(unknown)} for {model}; there are {', '.join(_AMOUNTS)}")
    amounts = {name: _amount(model, name, given.get(name)) for name in _AMOUNTS}
    try:
        since = date.fromisoformat(given.get("since", date.min.isoformat()))
    except (TypeError, ValueError):
        raise WrongPrices(f"has a `since` for {model} that is not like 2026-11-22") from None
    return ModelPrice(since, **amounts)


def _amount(model: str, name: str, given: object) -> Decimal | None:
    if given is None:
        return None
    try:
        # By their shortest text, so that 0.2 is two tenths.
        amount = Decimal(str(given)) if not isinstance(given, bool) else Decimal(-1)
    except InvalidOperation:
        amount = Decimal(-1)
    if not (amount.is_finite() and 0 <= amount <= _HIGHEST):
        raise WrongPrices(f"has a `{name}` for {model} that is not an amount of US dollars")
    return amount
