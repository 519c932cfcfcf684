"""A server that many kinds of caller talk to, from another machine."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from pydantic import SecretStr

from app.core.config import Settings
from app.core.database import Database
from app.state import Providers, State, serving
from tests.canaries import ADMIN_KEY
from tests.conftest import client_of
from tests.identity.issuer import Issuer
from tests.identity.world import World, build_world


@pytest.fixture(scope="session")
def issuer_keys() -> Issuer:
    """Keys that cost some time to make."""
    return Issuer()


@pytest.fixture
async def issuer(issuer_keys: Issuer) -> AsyncIterator[Issuer]:
    issuer_keys.is_away, issuer_keys.requests = False, 0
    issuer_keys.published = ["ec-1", "rsa-1"]
    async with issuer_keys.serving():
        yield issuer_keys


@pytest.fixture
def identity_settings(settings: Settings, issuer: Issuer) -> Settings:
    return settings.model_copy(
        update={"admin_api_key": SecretStr(ADMIN_KEY), "supabase_url": issuer.url}
    )


@pytest.fixture
async def state(
    identity_settings: Settings, database: Database, providers: Providers
) -> AsyncIterator[State]:
    async with serving(identity_settings, database, providers) as state:
        yield state


@pytest.fixture
async def client(identity_settings: Settings, state: State) -> AsyncIterator[httpx2.AsyncClient]:
    """A client on another machine, without a key."""
    async with client_of(
        identity_settings, state, peer="192.0.2.1", base_url="http://api.example"
    ) as client:
        yield client


@pytest.fixture
async def world(client: httpx2.AsyncClient, database: Database, issuer: Issuer) -> World:
    return await build_world(client, database, issuer)
