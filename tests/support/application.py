"""The application in the test's own process: its settings, its planted secrets, its client."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from app.core.config import Settings
from app.main import create_app
from app.state import State
from tests.support import planted_secrets

AUDIO = Path(__file__).parents[1] / "audio"
ADMIN_KEY = SecretStr(planted_secrets.ADMIN_KEY)
_document: dict[str, dict[str, Any]] = {}
"""The API's description, once an application of this process was asked for it.

It is the same whatever the settings are, and takes a third of a second.
"""


class IsolatedSettings(Settings):
    """Settings that do not read the developer's `.env`."""

    model_config = SettingsConfigDict(env_file=None)

    @override
    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings


@asynccontextmanager
async def client_of(
    settings: Settings, state: State, *, peer: str = "127.0.0.1", base_url: str = "http://test"
) -> AsyncGenerator[httpx2.AsyncClient]:
    """An HTTP client of an application that is in this process and has `state`."""

    @asynccontextmanager
    async def never_opened(_settings: Settings) -> AsyncGenerator[State]:
        raise AssertionError("the state is the fixture's")
        yield

    app = create_app(settings, never_opened)
    app.openapi_schema = _document.get("openapi")

    async def app_with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict[str, Any](state)}, receive, send)

    transport = httpx2.ASGITransport(planted_secrets.watched(app_with_state), client=(peer, 50000))
    async with httpx2.AsyncClient(transport=transport, base_url=base_url) as client:
        yield client
    if app.openapi_schema is not None:
        _document["openapi"] = app.openapi_schema
