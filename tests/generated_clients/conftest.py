"""The OpenAPI document as a file, and a server to send requests to."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.main import create_app
from tests.support.application import IsolatedSettings
from tests.support.planted_secrets import PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="session")
def openapi_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    path.write_text(json.dumps(create_app(IsolatedSettings()).openapi()))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with (
        Provider() as provider,
        ServerProcess(
            tmp_path,
            OPENAI_API_KEY=PROVIDER_KEY,
            OPENAI_BASE_URL=provider.base_url,
            TTS_MODEL="tts-test",
        ) as server,
    ):
        yield server
