"""Settings under which every part of a turn has a price."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from app.core.config import Provider, Settings
from app.core.database import Database
from app.state import Providers, State, serving

PRICES = {
    "fake-1": {"prompt": 0.2, "cached": 0.02, "completion": 1},
    "gpt-realtime-2.1-mini": {"speech_out_characters": 15},
}
TURN_COST = 0.00000404
"""Of a turn of `FakeChatModel`: 5 prompt, 2 cached and 3 completion tokens."""

Serve = Callable[..., AbstractAsyncContextManager[State]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As elsewhere, with providers that cost money."""
    paid = dict.fromkeys(("chat_provider", "stt_provider", "tts_provider"), Provider.OPENAI)
    return settings.model_copy(update={**paid, "prices": json.dumps(PRICES)})


@pytest.fixture
def serve(settings: Settings, database: Database, providers: Providers) -> Serve:
    """Another server with other settings: `async with serve(limit_usd_per_day=1) as state`."""

    @asynccontextmanager
    async def serve_with(**changes: object) -> AsyncGenerator[State]:
        changed = settings.model_copy(update=changes)
        async with serving(changed, database, providers) as state:
            yield state

    return serve_with
