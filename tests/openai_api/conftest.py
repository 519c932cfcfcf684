"""A real server before a provider on loopback, with one agent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.planted_secrets import PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(
    shared_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with server_of(tmp_path_factory.mktemp("server"), shared_provider) as server:
        add_agent(server)
        yield server


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    shared_provider.reset()
    return shared_provider


def server_of(folder: Path, provider: Provider, **settings: str) -> ServerProcess:
    return ServerProcess(
        folder,
        OPENAI_API_KEY=PROVIDER_KEY,
        OPENAI_BASE_URL=provider.base_url,
        TTS_MODEL="tts-test",
        **settings,
    )


def add_agent(server: ServerProcess) -> None:
    """Make the agent whose model's name is `agent-ada`."""
    body = {"name": "Ada", "system_prompt": "You are Ada."}
    with server.client() as client:
        assert client.post("/agents", json=body).status_code == 201
