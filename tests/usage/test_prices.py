"""Prices: what settings may say, and what comes of them."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.capabilities import Capability
from app.core.prices import InvalidPrices, parse_prices
from app.services.usage import BillableUsage, PriceTable
from tests.support.application import IsolatedSettings

TODAY = date(2026, 11, 23)
A_MILLION = 1_000_000
DOLLAR = 1_000_000_000


def test_each_part_has_its_own_unit() -> None:
    prices = parse_prices(
        '{"chat": {"prompt": 0.2, "cached": 0.02, "completion": 1}, '
        '"stt": {"speech_in_minute": 0.0045}, "tts": {"speech_out_characters": 15}}'
    )
    tariff = PriceTable(
        prices, {Capability.CHAT: "chat", Capability.STT: "stt", Capability.TTS: "tts"}
    )

    for used, dollars in (
        (BillableUsage("chat", prompt_tokens=A_MILLION), "0.2"),
        (BillableUsage("chat", prompt_tokens=A_MILLION, cached_tokens=A_MILLION), "0.02"),
        (BillableUsage("chat", completion_tokens=A_MILLION), "1"),
        (BillableUsage(speech_in_seconds=90), "0.00675"),
        (BillableUsage(speech_out_characters=A_MILLION), "15"),
        (BillableUsage("chat", 1, 0, 1, 60, 1), "0.0045162"),
    ):
        cost = tariff.cost(used, TODAY)
        assert (cost.known_nanos, cost.is_complete) == (int(Decimal(dollars) * DOLLAR), True)


def test_prompts_from_the_cache_cost_as_others_where_nothing_else_is_said() -> None:
    tariff = PriceTable(parse_prices('{"m": {"prompt": 2}}'))

    assert tariff.cost(BillableUsage("m", 1000, 400), TODAY).known_nanos == 2_000_000


def test_unknown_price_is_not_zero_and_nothing_costs_nothing() -> None:
    tariff = PriceTable({})

    assert not tariff.cost(BillableUsage("m", prompt_tokens=1), TODAY).is_complete
    assert not tariff.cost(BillableUsage(speech_out_characters=1), TODAY).is_complete
    assert tariff.cost(BillableUsage("m"), TODAY).is_complete


def test_unknown_count_has_no_cost_unless_it_is_free() -> None:
    priced = PriceTable(parse_prices('{"m": {"prompt": 1, "completion": 1}}'))
    free = PriceTable({}, free_capabilities=frozenset(Capability))

    assert not priced.cost(BillableUsage("m", prompt_tokens=None), TODAY).is_complete
    cost = free.cost(BillableUsage("m", None, None, None, 9, 9), TODAY)
    assert (cost.known_nanos, cost.is_complete) == (0, True)


def test_name_with_a_date_is_priced_as_the_name_without() -> None:
    tariff = PriceTable(parse_prices('{"m": {"prompt": 1}, "m-2026-01-01": {"prompt": 2}}'))

    assert tariff.cost(BillableUsage("m-2026-10-01", 1000), TODAY).known_nanos == 1_000_000
    assert tariff.cost(BillableUsage("m-2026-01-01", 1000), TODAY).known_nanos == 2_000_000


def test_price_counts_from_its_day_on() -> None:
    prices = parse_prices(
        '{"m": [{"since": "2026-11-23", "prompt": 3}, {"since": "2026-01-01", "prompt": 1}]}'
    )
    tariff = PriceTable(prices)

    assert tariff.cost(BillableUsage("m", 1), date(2026, 11, 22)).known_nanos == 1000
    assert tariff.cost(BillableUsage("m", 1), date(2026, 11, 23)).known_nanos == 3000
    assert not tariff.cost(BillableUsage("m", 1), date(2025, 12, 31)).is_complete


def test_models_of_the_package_have_prices() -> None:
    tariff = PriceTable(models={Capability.STT: "gpt-transcribe"})

    assert tariff.cost(BillableUsage("gpt-6-luna", 10, 0, 10, 60), TODAY).known_nanos == 4_512_000


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        '"m"',
        '{"m": 1}',
        '{"m": {"prompt": -1}}',
        '{"m": {"prompt": "much"}}',
        '{"m": {"prompt": "NaN"}}',
        '{"m": {"prompt": true}}',
        '{"m": {"prompt": 1e99}}',
        '{"m": {"price": 1}}',
        '{"m": {"prompt": 1, "since": "today"}}',
        '{"m": {"prompt": 1, "since": 5}}',
        '{"m": [null]}',
    ],
)
def test_wrong_prices_are_refused_with_a_reason(wrong: str) -> None:
    with pytest.raises(InvalidPrices):
        parse_prices(wrong)
    with pytest.raises(ValidationError, match="PRICES "):
        IsolatedSettings(prices=wrong)


def test_settings_go_over_the_file_and_the_file_over_the_package(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text('{"a": {"prompt": 1}, "b": {"prompt": 1}}')
    settings = IsolatedSettings(prices='{"b": {"prompt": null}}', prices_file=file)

    assert settings.price_list["a"][0].prompt == 1
    assert settings.price_list["b"][0].prompt is None


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="PRICES_FILE cannot be read"):
        IsolatedSettings(prices_file=tmp_path / "none.json")
