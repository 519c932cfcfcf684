"""An application in this process whose chat is served by a real HTTP provider on loopback."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

from app.core.config import Settings
from app.core.database import Database
from app.services.openai_service import OpenAIChatModel
from app.services.ports import ChatModel
from app.services.provider_http.client import ProviderClient
from app.state import Providers, State, build_state
from tests.conftest import client_of
from tests.observability.records import Lines, logged, wait_for_lines
from tests.support import planted_secrets
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber
from tests.support.provider import Provider

PATIENCE_SECONDS = 1.5


@dataclass(frozen=True)
class World:
    settings: Settings
    state: State
    client: httpx2.AsyncClient
    provider: Provider
    session_id: str
    lines: Lines

    async def say(self, words: str = planted_secrets.SAID, **body: Any) -> httpx2.Response:
        message = {"session_id": self.session_id, "content": words, **body}
        return await self.client.post("/messages/text", json=message)


@asynccontextmanager
async def world_of(
    settings: Settings,
    database: Database,
    provider: Provider,
    *,
    base_url: str | None = None,
    chat_model: ChatModel | None = None,
) -> AsyncGenerator[World]:
    """Serve with `settings`; `base_url` is the provider's own where it is not another."""
    url = base_url or provider.base_url
    settings = settings.model_copy(update={"openai_base_url": url})
    client = ProviderClient(
        url,
        planted_secrets.PROVIDER_KEY,
        first_byte_timeout_seconds=PATIENCE_SECONDS,
        chunk_timeout_seconds=PATIENCE_SECONDS,
    )
    async with client as http:
        providers = Providers(
            chat_model=chat_model
            or OpenAIChatModel(http, settings.chat_model, context_tokens=800_000),
            transcriber=FakeTranscriber(),
            speaker=FakeSpeaker(),
        )
        with logged() as lines:
            async with (
                build_state(settings, database, providers) as state,
                client_of(settings, state) as client,
            ):
                wait_for_lines(client)
                agent = await client.post("/agents", json={"name": "Ada"})
                session = await client.post("/sessions", json={"agent_id": agent.json()["id"]})
                lines.text.clear()
                session_id = session.json()["id"]
                yield World(settings, state, client, provider, session_id, lines)
