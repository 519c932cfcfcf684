"""Prices of models in US dollars: the built-in list, and the parser of `PRICES`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import orjson

PriceList = Mapping[str, Sequence["ModelPrice"]]
"""The prices of each model by its name, oldest first; the last one not in the future counts."""

_HIGHEST = Decimal(1_000_000)


class InvalidPrices(ValueError):
    """The prices cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """The prices of one model from a date on, in US dollars. `None` means unknown, never free."""

    since: date = date.min
    prompt: Decimal | None = None
    """Per million prompt tokens."""
    cached: Decimal | None = None
    """Per million prompt tokens from the provider's cache; `None` means the price of `prompt`."""
    completion: Decimal | None = None
    """Per million completion tokens."""
    speech_in_minute: Decimal | None = None
    """Per minute of transcribed audio."""
    speech_out_characters: Decimal | None = None
    """Per million characters of synthesized speech."""


_AMOUNTS = tuple(field.name for field in fields(ModelPrice) if field.name != "since")


def parse_prices(document: str | bytes) -> PriceList:
    """Parse `{"model": {"prompt": 0.2, "completion": 1, "since": "2026-11-22"}}`.

    The value of a model may also be a list of such objects. Raises `InvalidPrices`, whose message
    continues a sentence that begins with the name of the setting.
    """
    try:
        parsed: object = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise InvalidPrices(f"is not valid JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidPrices("must be a JSON object whose keys are names of models")
    prices = cast("dict[str, object]", parsed)
    return {model: _model_prices(model, entry) for model, entry in prices.items()}


def _model_prices(model: str, value: object) -> list[ModelPrice]:
    entries = cast("list[object]", value) if isinstance(value, list) else [value]
    return sorted((_price(model, entry) for entry in entries), key=lambda price: price.since)


def _price(model: str, entry: object) -> ModelPrice:
    if not isinstance(entry, dict):
        raise InvalidPrices(f"must have an object of prices for {model}")
    price_fields = cast("dict[str, Any]", entry)
    unknown = set(price_fields) - {*_AMOUNTS, "since"}
    if unknown:
        raise InvalidPrices(
            f"has the unknown price {min(unknown)} for {model}; use one of {', '.join(_AMOUNTS)}"
        )
    amounts = {name: _amount(model, name, price_fields.get(name)) for name in _AMOUNTS}
    try:
        since = date.fromisoformat(price_fields.get("since", date.min.isoformat()))
    except (TypeError, ValueError):
        raise InvalidPrices(
            f"has a `since` for {model} that is not a date such as 2026-11-22"
        ) from None
    return ModelPrice(since, **amounts)


def _amount(model: str, name: str, value: object) -> Decimal | None:
    if value is None:
        return None
    try:
        # Via the shortest decimal text, so that 0.2 is exactly two tenths.
        amount = Decimal(str(value)) if not isinstance(value, bool) else Decimal(-1)
    except InvalidOperation:
        amount = Decimal(-1)
    if not (amount.is_finite() and 0 <= amount <= _HIGHEST):
        raise InvalidPrices(f"has a `{name}` for {model} that is not an amount of US dollars")
    return amount


_CHECKED = date(2026, 11, 22)

LIST_PRICES: PriceList = {
    "gpt-6-luna": [ModelPrice(_CHECKED, prompt=Decimal("0.20"), completion=Decimal("1.00"))],
    "gpt-transcribe": [ModelPrice(_CHECKED, speech_in_minute=Decimal("0.0045"))],
}
"""The built-in prices. A model that is not listed has no known price."""

ASSUMED_PRICE = ModelPrice(
    prompt=Decimal(5),
    completion=Decimal(25),
    speech_in_minute=Decimal("0.02"),
    speech_out_characters=Decimal(60),
)
"""Counted by limits in dollars for a model without a known price: the price of large models."""
