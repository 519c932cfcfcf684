"""One application per test, on its own empty database, with fakes for the providers."""

import gc
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx2
import hypothesis
import pytest
import sniffio
from pydantic import SecretStr

from app.core.config import Settings
from app.core.database import Database
from app.core.database.migrations import upgrade
from app.state import Providers, State
from tests.support import (
    compiled_statements,
    documented_statuses,
    forked_workers,
    planted_secrets,
    reports,
    scheduling,
)
from tests.support.application import ADMIN_KEY, AUDIO, IsolatedSettings, client_of
from tests.support.fake_mcp import FakeMcp
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.postgres import PgBouncer, PostgresServer
from tests.support.recycled_databases import RecycledDatabases
from tests.support.tools import IN_CI, missing_tool
from tests.support.turns import assert_nothing_is_left, assert_nothing_stays_registered, open_server


def pytest_configure(config: pytest.Config) -> None:
    # How long an example takes says more about the machine than about the code.
    hypothesis.settings.register_profile("suite", deadline=None, print_blob=True)
    hypothesis.settings.load_profile("suite")
    for plugin in (planted_secrets, documented_statuses, forked_workers, reports, scheduling):
        config.pluginmanager.register(plugin)


def pytest_collection_finish() -> None:
    # As the server does: looking through all that was imported took a twentieth of the run.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


@pytest.fixture(autouse=True)
def outside_of_loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test without a loop call `anyio.run` while a fixture of wider scope has one open."""
    if request.node.get_closest_marker("anyio"):
        yield
        return
    token = sniffio.current_async_library_cvar.set(None)
    yield
    sniffio.current_async_library_cvar.reset(token)


@contextmanager
def skipping_without_tools() -> Generator[None]:
    """Skip the test where a program that it needs is missing; in CI let it fail."""
    try:
        yield
    except Exception as error:
        missing = missing_tool(error)
        if missing is None or IN_CI:
            raise
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None]:
    with skipping_without_tools():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    with skipping_without_tools():
        return (yield)


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
    with PostgresServer(fsync=False) as server, PgBouncer(server) as pooler:
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


@pytest.fixture(scope="session")
def databases(postgres: Postgres, postgres_template: str) -> Iterator[RecycledDatabases]:
    databases = RecycledDatabases(postgres.server, postgres_template)
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def valid_settings() -> Settings:
    """What the settings of each test are copied from, for to validate them takes 5 ms."""
    return IsolatedSettings(admin_api_key=ADMIN_KEY)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, valid_settings: Settings
) -> Iterator[Settings]:
    """Settings of an empty, migrated database: SQLite, and Postgres through PgBouncer."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        shutil.copy(template, tmp_path / "agent-platform.db")
        yield valid_settings.model_copy(update={"data_dir": tmp_path})
        planted_secrets.search_sqlite(tmp_path)
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    databases: RecycledDatabases = request.getfixturevalue("databases")
    name = databases.take(new=request.node.get_closest_marker("new_database") is not None)
    # Otherwise each connection is tried with TLS first, which neither server speaks.
    url = SecretStr(f"{postgres.pooler.url(name)}?sslmode=disable")
    yield valid_settings.model_copy(update={"data_dir": tmp_path, "database_url": url})
    databases.give_back(name)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(settings)
    compiled_statements.share(database)
    yield database
    compiled_statements.keep(database)
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
def fake_mcp() -> FakeMcp:
    return FakeMcp()


@pytest.fixture
def providers(
    chat_model: FakeChatModel,
    transcriber: FakeTranscriber,
    speaker: FakeSpeaker,
    fake_mcp: FakeMcp,
) -> Providers:
    return Providers(chat_model=chat_model, transcriber=transcriber, speaker=speaker, mcp=fake_mcp)


@pytest.fixture
async def state(
    settings: Settings, database: Database, providers: Providers
) -> AsyncIterator[State]:
    async with open_server(settings, database, providers) as state:
        yield state
        await assert_nothing_stays_registered(state["turns"])
    await assert_nothing_is_left(database)


StartServer = Callable[..., AbstractAsyncContextManager[State]]


@pytest.fixture
def second_server(settings: Settings, database: Database, providers: Providers) -> StartServer:
    """Another server on the same database: `async with second_server(chat_model=...) as other`.

    What is given replaces a provider or a setting of the first one's.
    """

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncGenerator[State]:
        own_providers: Any = {name: changes.pop(name, each) for name, each in providers.items()}
        own_settings = settings.model_copy(update=changes)
        async with open_server(own_settings, database, own_providers) as other:
            yield other
            await assert_nothing_stays_registered(other["turns"])

    return start


@pytest.fixture
async def client(settings: Settings, state: State) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(settings, state) as client:
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
