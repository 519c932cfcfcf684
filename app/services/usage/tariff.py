"""From what was used to what it costs."""

import re
from collections.abc import Mapping
from dataclasses import field
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

from app.core.price_list import ModelPrice, PriceList
from app.core.values import value
from app.services.usage.price_table import PRICES

NANOS = 1_000_000_000
"""Money is counted in nano-dollars: a token of a cheap model costs less than a micro-dollar."""

_DATED_NAME = re.compile(r"-[0-9]{4}-[0-9]{2}-[0-9]{2}$")
_NANOS_OF_MILLIONTH = Decimal(1000)
_NANOS_OF_SIXTIETH = Decimal(NANOS) / 60


class Part(StrEnum):
    """What a turn asks of a provider."""

    CHAT = "chat"
    STT = "stt"
    TTS = "tts"


@value(frozen=True, slots=True)
class Used:
    """What was used of each part. `None` is unknown; what was not asked for is 0."""

    chat_model: str | None = None
    """`None` is the server's default."""
    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    completion_tokens: int | None = 0
    speech_in_seconds: float = 0
    speech_out_characters: int = 0


@value(frozen=True, slots=True)
class Cost:
    """What something costs, as far as prices are known."""

    known_nanos: int
    is_complete: bool


@value(frozen=True, slots=True)
class Tariff:
    """The prices, and which model serves each part."""

    prices: PriceList = field(default_factory=lambda: PRICES)
    models: Mapping[Part, str] = field(default_factory=dict[Part, str])
    free: frozenset[Part] = frozenset()
    """Parts that this machine serves by itself."""

    def chat_model(self, named: str | None) -> str | None:
        """Return the model that answers where `named` was asked for."""
        return named or self.models.get(Part.CHAT)

    def cost(self, used: Used, day: date) -> Cost:
        """Return what `used` costs on `day`; what was not used costs nothing at any price."""
        cached = used.cached_tokens or 0
        chat = self._price(Part.CHAT, used.chat_model, day)
        stt = self._price(Part.STT, None, day) if used.speech_in_seconds else _UNKNOWN
        tts = self._price(Part.TTS, None, day) if used.speech_out_characters else _UNKNOWN
        prompt = None if used.prompt_tokens is None else max(0, used.prompt_tokens - cached)
        cached_price = chat.prompt if chat.cached is None else chat.cached
        parts = (
            _times(prompt, chat.prompt, _NANOS_OF_MILLIONTH),
            _times(cached, cached_price, _NANOS_OF_MILLIONTH),
            _times(used.completion_tokens, chat.completion, _NANOS_OF_MILLIONTH),
            _times(used.speech_in_seconds, stt.speech_in_minute, _NANOS_OF_SIXTIETH),
            _times(used.speech_out_characters, tts.speech_out_characters, _NANOS_OF_MILLIONTH),
        )
        known = sum((part for part in parts if part is not None), Decimal(0))
        return Cost(int(known.to_integral_value(ROUND_HALF_UP)), None not in parts)

    def _price(self, part: Part, named: str | None, day: date) -> ModelPrice:
        if part in self.free:
            return _FREE
        model = named or self.models.get(part, "")
        dated = self.prices.get(model) or self.prices.get(_DATED_NAME.sub("", model), ())
        for price in reversed(dated):
            if price.since <= day:
                return price
        return _UNKNOWN


_UNKNOWN = ModelPrice()
_ZERO = Decimal(0)
_FREE = ModelPrice(date.min, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO)


def _times(amount: float | None, price: Decimal | None, unit: Decimal) -> Decimal | None:
    if amount == 0:
        return _ZERO
    if price is None:
        return None
    if price == 0:
        return _ZERO
    if amount is None:
        return None
    exact = Decimal(amount) if isinstance(amount, int) else Decimal(str(amount))
    return exact * price * unit


def usd(nanos: int | None) -> float | None:
    """Return an amount as clients see it."""
    return None if nanos is None else nanos / NANOS
