"""Real servers before a provider on loopback, and a proxy that cuts connections."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import Postgres
from tests.support.cutting_proxy import CuttingProxy
from tests.support.planted_secrets import PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.server_process import ServerProcess


def _server(folder: Path, provider: Provider, **settings: str) -> ServerProcess:
    return ServerProcess(
        folder,
        OPENAI_API_KEY=PROVIDER_KEY,
        OPENAI_BASE_URL=provider.base_url,
        TTS_MODEL="tts-test",
        **settings,
    )


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture(scope="module")
def server(
    shared_provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with _server(tmp_path_factory.mktemp("server"), shared_provider) as server:
        yield server


@pytest.fixture
def provider(shared_provider: Provider) -> Provider:
    shared_provider.reset()
    return shared_provider


@pytest.fixture
def proxy(server: ServerProcess) -> Iterator[CuttingProxy]:
    with CuttingProxy(server.port) as proxy:
        yield proxy


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def mortal_server(
    request: pytest.FixtureRequest, provider: Provider, tmp_path: Path
) -> Iterator[ServerProcess]:
    """A server of the test's own, on each database, to be killed and started again."""
    with ExitStack() as stack:
        settings: dict[str, str] = {}
        if request.param == "postgres":
            postgres: Postgres = request.getfixturevalue("postgres")
            template: str = request.getfixturevalue("postgres_template")
            name = f"client_{uuid4().hex[:12]}"
            postgres.server.create_database(name, template=template)
            stack.callback(postgres.server.drop_database, name)
            settings["DATABASE_URL"] = postgres.pooler.url(name)
        yield stack.enter_context(_server(tmp_path, provider, **settings))
