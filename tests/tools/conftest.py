"""A tool server on loopback, and an application whose tools may call it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from app.core.config import Settings
from app.core.database import Database
from app.state import Providers, State, build_state
from tests.support import planted_secrets
from tests.support.application import client_of
from tests.support.tool_server import ToolServer, tool_server
from tests.support.turns import assert_nothing_is_left, assert_nothing_stays_registered


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server() as server:
        yield server


@pytest.fixture
def tool_settings(settings: Settings, server: ToolServer) -> Settings:
    return settings.model_copy(update={"tools_allowed_addresses": server.allowed})


@pytest.fixture
async def state(
    tool_settings: Settings, database: Database, providers: Providers
) -> AsyncIterator[State]:
    async with build_state(tool_settings, database, providers) as state:
        yield state
        await assert_nothing_stays_registered(state["turns"])
    await assert_nothing_is_left(database)


@pytest.fixture
async def client(tool_settings: Settings, state: State) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(tool_settings, state) as client:
        yield client


def definition(server: ToolServer | None = None, **changes: Any) -> dict[str, Any]:
    """Return the body of a tool that looks up an order at `server`, with `changes`."""
    url = server.url if server else "https://api.example.com"
    http = {"method": "GET", "url": f"{url}/orders/{{number}}"} | changes.pop("http", {})
    return {
        "name": "get_order",
        "description": "Looks up an order by its number.",
        "kind": "http",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "string"}, "verbose": {"type": "boolean"}},
            "required": ["number"],
        },
        "http": http,
    } | changes


async def make_tool(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    made = await client.post("/tools", json=body)
    assert made.status_code == 201, made.text
    return made.json()


async def store_secret(
    client: httpx2.AsyncClient, *hosts: str, name: str = "SHOP_KEY", value: str | None = None
) -> None:
    body = {"name": name, "value": value or planted_secrets.TOOL_SECRET, "hosts": hosts}
    assert (await client.post("/secrets", json=body)).status_code == 201
