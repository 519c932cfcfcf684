"""Settings under which every part of a turn has a price."""

import json

import pytest

from app.core.config import Provider, Settings

PRICES = {
    "fake-1": {"prompt": 0.2, "cached": 0.02, "completion": 1},
    "gpt-realtime-2.1-mini": {"speech_out_characters": 15},
}
TURN_COST = 0.00000404
"""Of a turn of `FakeChatModel`: 5 prompt, 2 cached and 3 completion tokens."""


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As elsewhere, with providers that cost money."""
    paid = dict.fromkeys(("chat_provider", "stt_provider", "tts_provider"), Provider.OPENAI)
    return settings.model_copy(update={**paid, "prices": json.dumps(PRICES)})
