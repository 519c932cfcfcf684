"""What tests of files share: a server whose model sees images, and uploads."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from app.core.config import Settings

Upload = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """The settings of a server with a provider, whose models see images."""
    return settings.model_copy(update={"openai_api_key": SecretStr("sk-unused-key-of-a-test")})


@pytest.fixture
def upload(client: httpx2.AsyncClient) -> Upload:
    """Upload a file: `await upload("a.png", data)`; returns what the server knows of it."""

    async def upload(name: str, data: bytes, **headers: str) -> dict[str, Any]:
        response = await client.post("/files", files={"file": (name, data)}, headers=headers)
        assert response.status_code == 201, response.text
        return response.json()

    return upload
