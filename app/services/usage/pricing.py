"""Compute the cost of usage from the price list."""

import logging
import re
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_UP, Decimal

from app.core.capabilities import Capability
from app.core.config import Settings
from app.core.prices import ASSUMED_PRICE, LIST_PRICES, ModelPrice, PriceList
from app.core.value_objects import value_object

logger = logging.getLogger(__name__)

NANOS = 1_000_000_000
"""Money is counted in nano-dollars: a token of a cheap model costs less than a micro-dollar."""

_DATED_NAME = re.compile(r"-[0-9]{4}-[0-9]{2}-[0-9]{2}$")
_NANOS_OF_MILLIONTH = Decimal(1000)
_NANOS_OF_SIXTIETH = Decimal(NANOS) / 60


@value_object(frozen=True, slots=True)
class BillableUsage:
    """Usage of chat, transcription and speech synthesis. `None` is unknown, 0 is unused."""

    chat_model: str | None = None
    """The model of the request; `None` is the server's default model."""
    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    completion_tokens: int | None = 0
    speech_in_seconds: float = 0
    speech_out_characters: int = 0


@value_object(frozen=True, slots=True)
class Cost:
    """A cost; `is_complete` is False where a price is unknown, and so left out."""

    known_nanos: int
    is_complete: bool
    budget_nanos: int
    """The cost with `ASSUMED_PRICE` for unknown prices, by which limits in dollars count."""


@value_object(frozen=True, slots=True)
class PriceTable:
    """The price list, and the default model of each capability."""

    prices: PriceList = field(default_factory=lambda: LIST_PRICES)
    models: Mapping[Capability, str] = field(default_factory=dict[Capability, str])
    free_capabilities: frozenset[Capability] = frozenset()
    """Capabilities that the embedded engine serves, at no cost."""

    def chat_model(self, named: str | None, *, has_answered: bool) -> str | None:
        """Return the model of an answer: `named`, or the server's default.

        `named` is the model's own name once it `has_answered`, and the agent's setting before. The
        embedded engine has one model, whatever the settings name: until then it is `None`.
        """
        if not has_answered and Capability.CHAT in self.free_capabilities:
            return None
        return named or self.models.get(Capability.CHAT)

    def cost(self, used: BillableUsage, day: date) -> Cost:
        """Return the cost of `used` on `day`; an unused capability costs 0 at any price."""
        cached = used.cached_tokens or 0
        chat = self._price(Capability.CHAT, used.chat_model, day)
        stt = self._price(Capability.STT, None, day) if used.speech_in_seconds else _UNKNOWN
        tts = self._price(Capability.TTS, None, day) if used.speech_out_characters else _UNKNOWN
        prompt = None if used.prompt_tokens is None else max(0, used.prompt_tokens - cached)
        cached_price = chat.prompt if chat.cached is None else chat.cached
        counted: tuple[tuple[float | None, Decimal | None, Decimal | None, Decimal], ...] = (
            (prompt, chat.prompt, ASSUMED_PRICE.prompt, _NANOS_OF_MILLIONTH),
            (cached, cached_price, ASSUMED_PRICE.prompt, _NANOS_OF_MILLIONTH),
            (used.completion_tokens, chat.completion, ASSUMED_PRICE.completion,
             _NANOS_OF_MILLIONTH),
            (used.speech_in_seconds, stt.speech_in_minute, ASSUMED_PRICE.speech_in_minute,
             _NANOS_OF_SIXTIETH),
            (used.speech_out_characters, tts.speech_out_characters,
             ASSUMED_PRICE.speech_out_characters, _NANOS_OF_MILLIONTH),
        )  # fmt: skip
        known_cost, more, is_known = _ZERO, _ZERO, True
        for amount, price, assumed_price, unit in counted:
            if amount == 0 or price == 0:
                continue
            is_known = is_known and amount is not None and price is not None
            if amount is None:
                continue
            exact = Decimal(amount) if isinstance(amount, int) else Decimal(str(amount))
            if price is not None:
                known_cost += exact * price * unit
            elif assumed_price is not None:
                more += exact * assumed_price * unit
        return Cost(_rounded(known_cost), is_known, _rounded(known_cost + more))

    def models_without_price(self, day: date) -> list[str]:
        """Return the models of the capabilities, as far as their prices are not all known."""
        needed = {
            Capability.CHAT: ("prompt", "completion"),
            Capability.STT: ("speech_in_minute",),
            Capability.TTS: ("speech_out_characters",),
        }
        return [
            model
            for capability, model in self.models.items()
            if any(
                getattr(self._price(capability, None, day), name) is None
                for name in needed[capability]
            )
        ]

    def _price(self, part: Capability, named: str | None, day: date) -> ModelPrice:
        if part in self.free_capabilities:
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


def _rounded(nanos: Decimal) -> int:
    return int(nanos.to_integral_value(ROUND_HALF_UP))


def usd(nanos: int | None) -> float | None:
    """Convert nano-dollars to US dollars."""
    return None if nanos is None else nanos / NANOS


def price_table(settings: Settings) -> PriceTable:
    """Return the prices of the configured models."""
    models = {
        Capability.CHAT: settings.chat_model,
        Capability.STT: settings.stt_model,
        Capability.TTS: settings.speech_model,
    }
    table = PriceTable(
        {**LIST_PRICES, **settings.price_list}, models, settings.embedded_capabilities
    )
    today = datetime.now(UTC).date()
    if settings.limits_dollars and (unpriced := table.models_without_price(today)):
        logger.warning(
            "The price of %s is not known: limits in US dollars count it as that of a large model. "
            "Set PRICES to its price; 0 is free.",
            ", ".join(unpriced),
        )
    return table
