"""A server on a SQLite file of its own, with a real HTTP provider on loopback."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.core.config import Settings
from app.core.database import Database
from tests.conftest import ADMIN_KEY, IsolatedSettings
from tests.observability.world import World, world_of
from tests.support.provider import Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
async def sqlite_database(sqlite_settings: Settings) -> AsyncIterator[Database]:
    database = Database.from_settings(sqlite_settings)
    yield database
    await database.dispose()


@pytest.fixture
def sqlite_settings(tmp_path: Path, sqlite_template: Path) -> Settings:
    (tmp_path / "agent-platform.db").write_bytes(sqlite_template.read_bytes())
    return IsolatedSettings(
        data_dir=tmp_path, admin_api_key=ADMIN_KEY, openai_base_url="http://127.0.0.1:9/v1"
    )


@pytest.fixture
async def world(
    sqlite_settings: Settings, sqlite_database: Database, provider: Provider
) -> AsyncIterator[World]:
    async with world_of(sqlite_settings, sqlite_database, provider) as world:
        yield world
