"""One application per test, on its own empty database, with fakes for the providers."""

import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import httpx2
import pytest
from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict
from starlette.types import Receive, Scope, Send

from app.core.config import Settings
from app.core.database import Database
from app.core.migrations import upgrade
from app.main import create_app
from app.state import Providers, State, serving
from tests import canaries
from tests.fakes import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.postgres import PgBouncer, PostgresMissing, PostgresServer


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(canaries)


class IsolatedSettings(Settings):
    """Settings that do not read the developer's `.env`."""

    model_config = SettingsConfigDict(env_file=None)


AUDIO = Path(__file__).parent / "audio"
ADMIN_KEY = SecretStr(canaries.ADMIN_KEY)
IN_CI = os.environ.get("CI") == "true"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Postgres:
    server: PostgresServer
    pooler: PgBouncer


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real server and a real transaction pooler, for the whole run."""
    try:
        server = PostgresServer(fsync=False)
    except PostgresMissing as missing:
        if IN_CI:
            raise
        pytest.skip(str(missing))
    with server, PgBouncer(server) as pooler:
        yield Postgres(server, pooler)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    folder = tmp_path_factory.mktemp("template")
    upgrade(IsolatedSettings(data_dir=folder))
    return folder / "agent-platform.db"


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """The name of a migrated database, to be copied."""
    postgres.server.create_database("template_migrated")
    url = SecretStr(postgres.server.url("template_migrated"))
    upgrade(IsolatedSettings(database_url=url))
    return "template_migrated"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """Settings of an empty, migrated database: SQLite, and Postgres through PgBouncer."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        shutil.copy(template, tmp_path / "agent-platform.db")
        yield IsolatedSettings(data_dir=tmp_path, admin_api_key=ADMIN_KEY)
        canaries.search_sqlite(tmp_path)
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    migrated: str = request.getfixturevalue("postgres_template")
    name = f"test_{uuid4().hex[:12]}"
    postgres.server.create_database(name, template=migrated)
    url = SecretStr(postgres.pooler.url(name))
    yield IsolatedSettings(data_dir=tmp_path, database_url=url, admin_api_key=ADMIN_KEY)
    postgres.server.drop_database(name)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(settings)
    yield database
    await database.dispose()


@pytest.fixture
def chat_model() -> FakeChatModel:
    return FakeChatModel()


@pytest.fixture
def transcriber() -> FakeTranscriber:
    return FakeTranscriber()


@pytest.fixture
def speaker() -> FakeSpeaker:
    return FakeSpeaker()


@pytest.fixture
def providers(
    chat_model: FakeChatModel, transcriber: FakeTranscriber, speaker: FakeSpeaker
) -> Providers:
    return Providers(chat_model=chat_model, transcriber=transcriber, speaker=speaker)


@pytest.fixture
async def state(
    settings: Settings, database: Database, providers: Providers
) -> AsyncIterator[State]:
    async with serving(settings, database, providers) as state:
        yield state


@pytest.fixture
async def client(settings: Settings, state: State) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(settings, state) as client:
        yield client


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

    async def app_with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict[str, Any](state)}, receive, send)

    transport = httpx2.ASGITransport(canaries.watched(app_with_state), client=(peer, 50000))
    async with httpx2.AsyncClient(transport=transport, base_url=base_url) as client:
        yield client


@pytest.fixture
async def agent_id(client: httpx2.AsyncClient) -> str:
    response = await client.post("/agents", json={"name": "Ada", "system_prompt": "Be brief."})
    return response.json()["id"]


@pytest.fixture
async def session_id(client: httpx2.AsyncClient, agent_id: str) -> str:
    response = await client.post("/sessions", json={"agent_id": agent_id})
    return response.json()["id"]


@pytest.fixture
async def speech() -> bytes:
    """Three seconds of clear speech, as a WAV file."""
    return await anyio.Path(AUDIO / "anna_01.wav").read_bytes()
