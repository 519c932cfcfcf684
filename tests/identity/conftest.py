"""A server that many kinds of caller talk to, from another machine."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from pydantic import SecretStr

from app.core.config import Settings
from app.core.database import Database
from app.state import Providers, State, build_state
from tests.identity.issuer import Issuer
from tests.identity.world import World, build_world
from tests.support.application import client_of
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.turns import assert_nothing_is_left, assert_nothing_stays_registered


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
        update={
            "admin_api_key": SecretStr(ADMIN_KEY),
            "supabase_url": issuer.url,
            "limit_user_requests_per_minute": 0,  # a test asks every endpoint
        }
    )


@pytest.fixture
async def state(
    identity_settings: Settings, database: Database, providers: Providers
) -> AsyncIterator[State]:
    async with build_state(identity_settings, database, providers) as state:
        yield state
        await assert_nothing_stays_registered(state["turns"])
    await assert_nothing_is_left(database)


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
