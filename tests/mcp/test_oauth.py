"""MCP servers that want OAuth: the worker process, and a server that has issued its tokens."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import orjson
import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.core.database import Database
from app.models import StoredSecret
from app.state import Providers, State
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber
from tests.support.oauth_server import OAuthServer
from tests.support.planted_secrets import MARK
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.tool_server import tool_server
from tests.support.tool_turns import send

pytestmark = pytest.mark.anyio
BACK = "https://console.example.com/back"


@pytest.fixture
async def oauth() -> AsyncIterator[OAuthServer]:
    async with tool_server() as server:
        server.respond = oauth = OAuthServer(server)
        yield oauth


@pytest.fixture
def settings(settings: Settings, oauth: OAuthServer) -> Settings:
    return settings.model_copy(update={"tools_allowed_addresses": oauth.server.allowed})


@pytest.fixture
def providers(
    chat_model: ScriptedChatModel, transcriber: FakeTranscriber, speaker: FakeSpeaker
) -> Providers:
    """Without a fake for MCP, there is the worker."""
    return Providers(chat_model=chat_model, transcriber=transcriber, speaker=speaker)


async def make(client: httpx2.AsyncClient, oauth: OAuthServer, **settings: Any) -> httpx2.Response:
    body = {"name": "shop", "url": f"{oauth.server.url}/mcp", "auto_accept": True, "effect": "read"}
    return await client.post("/mcp-servers", json={**body, "oauth": settings})


async def make_own(client: httpx2.AsyncClient, oauth: OAuthServer) -> httpx2.Response:
    """Make a server for which this one is a client by itself."""
    hosts = [oauth.server.allowed]
    secret = {"name": "CLIENT", "value": f"{MARK}registered-secret-07", "hosts": hosts}
    assert (await client.post("/secrets", json=secret)).status_code == 201
    return await make(
        client,
        oauth,
        grant="client_credentials",
        client_id="agents",
        client_secret="CLIENT",
        issuer=oauth.server.url,
    )


async def call(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    server_id: str,
    model: ScriptedChatModel,
) -> dict[str, Any]:
    """Have a turn call the server's tool; return the call."""
    tools = [{"mcp_server_id": server_id}]
    assert (await client.patch(f"/agents/{agent_id}", json={"tools": tools})).status_code == 200
    model.script = [(("shop__whoami", "{}"),)]
    assert (await send(client, session_id)).status_code == 200
    return (await client.get("/tool-calls")).json()[0]


async def authorize(
    client: httpx2.AsyncClient, oauth: OAuthServer, server_id: str
) -> httpx2.Response:
    path = f"/mcp-servers/{server_id}/authorization"
    begun = await client.post(path, json={"redirect_uri": BACK})
    assert begun.status_code == 200, begun.text
    return await client.post(f"{path}/code", json=oauth.visit(begun.json()["authorization_url"]))


async def test_server_is_called_with_client_credentials(
    client: httpx2.AsyncClient,
    database: Database,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    oauth: OAuthServer,
) -> None:
    made = await make_own(client, oauth)
    assert made.status_code == 201, made.text
    assert [tool["status"] for tool in made.json()["tools"]] == ["accepted"]
    assert made.json()["oauth"]["client_secret"] == "CLIENT"
    server_id = made.json()["id"]

    first = await call(client, agent_id, session_id, server_id, chat_model)

    assert first["result"] == "you have [secret Authorization]"
    assert oauth.grants[0]["grant_type"] == "client_credentials"
    assert oauth.grants[0]["resource"] == f"{oauth.server.url}/mcp"
    assert oauth.authorizations[0].startswith("Basic ")
    count = len(oauth.grants)
    await call(client, agent_id, session_id, server_id, chat_model)
    assert len(oauth.grants) == count, "a token is used until it ends"
    oauth.valid.clear()
    again = await call(client, agent_id, session_id, server_id, chat_model)
    assert (again["status"], len(oauth.grants)) == ("completed", count + 1)
    [secret] = (await client.get("/secrets")).json()
    assert (secret["name"], secret["used_by"]) == ("CLIENT", [server_id])
    async with database.reading() as db:
        sealed = (await db.scalars(select(StoredSecret.sealed))).all()
    assert len(sealed) >= 2
    assert not any(MARK.encode() in each for each in sealed)


async def test_person_authorizes_once_and_the_token_is_renewed(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    oauth: OAuthServer,
) -> None:
    made = await make(client, oauth, grant="authorization_code")
    assert made.status_code == 201, made.text
    assert made.json()["tools"] == []
    server_id = made.json()["id"]
    refused = await client.post(f"/mcp-servers/{server_id}/refresh")
    assert (refused.status_code, refused.json()["code"]) == (422, "mcp-unauthorized")

    oauth.lasts_seconds = 1  # so that each call renews it
    listed = await authorize(client, oauth, server_id)
    assert listed.status_code == 200, listed.text
    assert listed.json()["added"] == ["whoami"]
    done = await call(client, agent_id, session_id, server_id, chat_model)

    assert done["status"] == "completed"
    first, *renewals = oauth.grants
    assert (first["grant_type"], first["client_id"]) == ("authorization_code", "registered")
    assert {each["grant_type"] for each in renewals} == {"refresh_token"}
    oauth.refuses_refresh = True
    failed = await call(client, agent_id, session_id, server_id, chat_model)
    assert failed["error"]["code"] == "mcp-error"
    oauth.refuses_refresh = False
    kept = await call(client, agent_id, session_id, server_id, chat_model)
    assert kept["status"] == "completed", "a renewal that failed has thrown nothing away"


async def test_authorization_is_finished_once_by_its_own_answer(
    client: httpx2.AsyncClient, oauth: OAuthServer
) -> None:
    server_id = (await make(client, oauth, grant="authorization_code")).json()["id"]
    path = f"/mcp-servers/{server_id}/authorization"
    begun = (await client.post(path, json={"redirect_uri": BACK})).json()
    answer = oauth.visit(begun["authorization_url"])

    refusals = [await client.post(f"{path}/code", json=answer | {"state": "another"})]
    finished = await client.post(f"{path}/code", json=answer)
    refusals.append(await client.post(f"{path}/code", json=answer))
    begun = (await client.post(path, json={"redirect_uri": BACK})).json()
    elsewhere = oauth.visit(begun["authorization_url"]) | {"iss": "https://evil.example.com"}
    refusals.append(await client.post(f"{path}/code", json=elsewhere))

    assert finished.status_code == 200
    assert [each.json()["code"] for each in refusals] == ["mcp-unauthorized"] * 3
    assert len(oauth.grants) == 1
    for uri in ("http://console.example.com/back", "https://x.example.com/#a", "javascript:1"):
        assert (await client.post(path, json={"redirect_uri": uri})).status_code == 422


async def test_token_is_renewed_by_one_of_many(
    client: httpx2.AsyncClient, state: State, oauth: OAuthServer
) -> None:
    server = (await make_own(client, oauth)).json()
    stored = {key: server[key] for key in ("url", "oauth")}
    workspace_id, count = next(iter(await workspace_ids(state))), len(oauth.grants)
    found: list[dict[str, str]] = []

    async def ask() -> None:
        authorizer = state["mcp_directory"].authorizer
        found.append(await authorizer.headers(workspace_id, server["id"], stored))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)

    assert len({orjson.dumps(each) for each in found}) == 1
    assert len(oauth.grants) == count + 1


async def workspace_ids(state: State) -> list[Any]:
    async with state["database"].reading() as db:
        return list(await db.scalars(select(StoredSecret.workspace_id)))


async def test_settings_that_cannot_work_are_refused(
    client: httpx2.AsyncClient, oauth: OAuthServer
) -> None:
    secret = {
        "name": "CLIENT",
        "value": f"{MARK}registered-secret-07",
        "hosts": [oauth.server.allowed],
    }
    await client.post("/secrets", json=secret)
    given = {"client_id": "agents", "client_secret": "CLIENT", "issuer": oauth.server.url}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"client_id": None}, "tool-invalid"),
        ({"issuer": None}, "tool-invalid"),
        ({"client_secret": None}, "tool-invalid"),
        ({"client_secret": "MISSING"}, "secret-not-found"),
        ({"issuer": "https://elsewhere.example.com"}, "secret-host-mismatch"),
        ({"issuer": "http://10.0.0.1"}, "address-not-allowed"),
    ]

    for changes, code in cases:
        refused = await make(client, oauth, grant="client_credentials", **(given | changes))
        assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert oauth.server.requests == []


async def test_secret_goes_to_no_other_host_that_the_metadata_names(
    client: httpx2.AsyncClient, oauth: OAuthServer
) -> None:
    oauth.token_url = f"http://localhost:{oauth.server.port}/token"

    refused = await make_own(client, oauth)

    assert (refused.status_code, refused.json()["code"]) == (422, "mcp-unauthorized")
    assert "may not be sent" in refused.json()["detail"]
    assert oauth.grants == []
