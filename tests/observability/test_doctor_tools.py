"""What `agent-platform doctor` finds out about secrets, tools and MCP servers."""

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import delete, select

from app.core.config import Settings
from app.core.database import Database
from app.doctor.checks import Check
from app.doctor.tool_checks import check_tool_settings, check_tools
from app.models import StoredSecret
from app.services.tools.key_ring import KeyRing
from app.state import Providers
from tests.mcp.test_oauth import authorize, make, make_own
from tests.support.fake_providers import FakeChatModel, FakeSpeaker, FakeTranscriber
from tests.support.oauth_server import OAuthServer
from tests.support.tool_server import tool_server

pytestmark = pytest.mark.anyio
on_sqlite = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
"""The queries are run on both databases by the other tests; each process for MCP takes a second."""

OTHER_KEY = SecretStr("MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=")


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
    chat_model: FakeChatModel, transcriber: FakeTranscriber, speaker: FakeSpeaker
) -> Providers:
    """Without a fake for MCP, there is the worker."""
    return Providers(chat_model=chat_model, transcriber=transcriber, speaker=speaker)


async def checks_of(settings: Settings, database: Database) -> dict[str, Check]:
    return {check.name: check for check in await check_tools(settings, database)}


async def change_grant(
    settings: Settings, database: Database, change: Callable[[dict[str, Any]], object]
) -> None:
    """Change what the only MCP server has granted."""
    sealer = KeyRing.from_settings(settings).sealer()
    async with database.transaction() as db:
        query = select(StoredSecret).where(StoredSecret.name.startswith("oauth/"))
        stored = (await db.scalars(query)).one()
        grant = orjson.loads(sealer.open(stored.sealed, stored.workspace_id, stored.name))
        change(grant)
        stored.sealed = sealer.seal(orjson.dumps(grant), stored.workspace_id, stored.name)


async def test_server_without_tools_is_asked_nothing(
    client: httpx2.AsyncClient, settings: Settings, database: Database
) -> None:
    assert await client.get("/tools")
    assert check_tool_settings(settings) == []
    assert await checks_of(settings, database) == {}
    assert not (settings.data_dir / "secrets.key").exists()


async def test_tools_that_cannot_be_called_are_named(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    host = oauth.server.allowed
    await client.post("/secrets", json={"name": "KEY", "value": "a long value", "hosts": [host]})
    for name, secret in (("fine", None), ("keyed", "KEY")):
        headers = {"X-Key": f"{{{{secrets.{secret}}}}}"} if secret else {}
        http = {"method": "GET", "url": f"{oauth.server.url}/x", "headers": headers}
        body = {"name": name, "description": "d", "kind": "http", "http": http}
        made = await client.post("/tools", json=body)
        assert made.status_code == 201, made.text

    fine = await checks_of(settings, database)
    assert [check.verdict for check in fine.values()] == ["ok", "ok"]
    assert fine["tools"].finding.startswith("2, each")

    await client.post(
        "/secrets", json={"name": "KEY", "value": "a long value", "hosts": ["a.example.com"]}
    )
    elsewhere = (await checks_of(settings, database))["tool keyed"]
    assert (elsewhere.verdict, elsewhere.advice) == (
        "warning",
        "Store KEY again with the host among its `hosts`, or change the URL.",
    )
    await client.delete("/secrets/KEY")
    missing = (await checks_of(settings, database))["tool keyed"]
    assert missing.advice == "Store KEY with `POST /secrets`."
    closed = settings.model_copy(update={"tools_allowed_addresses": None})
    refused = await checks_of(closed, database)
    assert refused.keys() == {"secrets", "tool fine", "tool keyed"}
    assert "TOOLS_ALLOWED_ADDRESSES" in (refused["tool fine"].advice or "")


@on_sqlite
async def test_key_that_opens_no_secret_is_broken_and_none_is_made(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    assert (await make_own(client, oauth)).status_code == 201
    key = (settings.data_dir / "secrets.key").read_text().strip()
    fine = await checks_of(settings, database)
    assert (fine["secrets"].verdict, fine["MCP server shop"].verdict) == ("ok", "ok")

    other = settings.model_copy(update={"secrets_key": OTHER_KEY})
    both = settings.model_copy(
        update={"secrets_key": SecretStr(f"{OTHER_KEY.get_secret_value()},{key}")}
    )
    wrong = await checks_of(other, database)
    assert list(wrong) == ["secrets"]
    assert wrong["secrets"].verdict == "broken"
    older = (await checks_of(both, database))["secrets"]
    assert older.verdict == "warning"
    assert "secrets rotate" in (older.advice or "")
    (settings.data_dir / "secrets.key").unlink()
    gone = await checks_of(settings, database)
    assert gone["secrets"].verdict == "broken"
    assert not (settings.data_dir / "secrets.key").exists()


@on_sqlite
async def test_definitions_that_nobody_has_accepted_are_named(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    made = await make_own(client, oauth)
    server_id = made.json()["id"]
    stored = len(oauth.grants)

    fine = (await checks_of(settings, database))["MCP server shop"]
    assert (fine.verdict, fine.finding) == ("ok", "reachable, 1 tools accepted")
    oauth.tools = [{"name": "whoami", "description": "Another one"}, {"name": "new"}]
    changed = (await checks_of(settings, database))["MCP server shop"]
    assert changed.verdict == "warning"
    assert changed.finding == f"{server_id}: defined in another way, or not at all: whoami"
    assert "/refresh" in (changed.advice or "")
    oauth.tools = [{"name": "whoami"}, {"name": "new"}]
    pending = (await checks_of(settings, database))["MCP server shop"]
    assert pending.finding == f"{server_id}: wait for acceptance: new"
    assert "/accept" in (pending.advice or "")

    assert len(oauth.grants) == stored + 3, "it got a token of its own each time"
    again = (await client.get(f"/mcp-servers/{server_id}")).json()
    assert again == {**made.json(), "updated_at": again["updated_at"]}, "nothing is stored"


async def test_server_that_cannot_be_used_is_named_with_what_to_do(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    assert (await make_own(client, oauth)).status_code == 201
    oauth.refuses_clients = True
    refused = (await checks_of(settings, database))["MCP server shop"]
    assert "mcp-unauthorized" in refused.finding
    assert "`oauth`" in (refused.advice or "")
    await client.delete("/secrets/CLIENT")
    missing = (await checks_of(settings, database))["MCP server shop"]
    assert "secret-not-found" in missing.finding
    assert missing.advice == "Store the secret with `POST /secrets`."
    closed = settings.model_copy(update={"tools_allowed_addresses": None})
    assert "SECRETS_KEY" not in str(await checks_of(closed, database))


@on_sqlite
async def test_person_is_wanted_where_an_authorization_is_missing_or_has_ended(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    server_id = (await make(client, oauth, grant="authorization_code")).json()["id"]

    missing = (await checks_of(settings, database))["MCP server shop"]
    assert (missing.verdict, missing.finding) == (
        "warning",
        f"{server_id}: nobody has authorized it",
    )
    assert "/authorization" in (missing.advice or "")
    assert (await authorize(client, oauth, server_id)).status_code == 200
    fine = (await checks_of(settings, database))["MCP server shop"]
    assert (fine.verdict, fine.finding) == ("ok", "reachable, 1 tools accepted")

    count = len(oauth.grants)
    await change_grant(settings, database, lambda grant: grant.update(expires_at=time.time()))
    renewable = (await checks_of(settings, database))["MCP server shop"]
    assert renewable.verdict == "ok"
    assert "renewed at the next use" in renewable.finding
    await change_grant(settings, database, lambda grant: grant["tokens"].pop("refresh_token"))
    ended = (await checks_of(settings, database))["MCP server shop"]
    assert "cannot be renewed" in ended.finding
    assert len(oauth.grants) == count, "nothing was renewed"


@on_sqlite
async def test_unreachable_server_is_named(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    server_id = (await make(client, oauth, grant="authorization_code")).json()["id"]
    assert (await authorize(client, oauth, server_id)).status_code == 200
    oauth.server.stop()

    found = (await checks_of(settings, database))["MCP server shop"]

    assert found.verdict == "warning"
    assert "mcp-unreachable" in found.finding
    assert "calls of its tools fail" in (found.advice or "")


def test_programs_are_looked_for(tmp_path: Path, valid_settings: Settings) -> None:
    path = tmp_path / "programs.json"
    settings = valid_settings.model_copy(update={"mcp_servers_file": path})
    (unread,) = check_tool_settings(settings)
    assert (unread.verdict, "MCP_SERVERS_FILE cannot be read" in unread.finding) == ("broken", True)

    servers = {"files": {"command": "sh"}, "own": {"command": "./no-such", "cwd": str(tmp_path)}}
    path.write_text(json.dumps({"mcpServers": servers}))
    (missing,) = check_tool_settings(settings)
    assert (missing.verdict, missing.finding) == ("broken", "own: there is no command ./no-such")
    (tmp_path / "no-such").write_text("#!/bin/sh\n")
    (tmp_path / "no-such").chmod(0o700)
    (found,) = check_tool_settings(settings)
    assert (found.verdict, found.finding) == ("ok", "files, own: installed")
    wrong = valid_settings.model_copy(update={"tools_allowed_addresses": "not an address"})
    assert check_tool_settings(wrong)[0].verdict == "broken"


@on_sqlite
async def test_secret_that_was_tampered_with_is_no_error_of_the_command(
    client: httpx2.AsyncClient, settings: Settings, database: Database, oauth: OAuthServer
) -> None:
    assert (await make_own(client, oauth)).status_code == 201
    async with database.transaction() as db:
        secret = (await db.scalars(select(StoredSecret).where(StoredSecret.name == "CLIENT"))).one()
        secret.sealed = secret.sealed[:-1] + bytes([secret.sealed[-1] ^ 1])
        await db.execute(delete(StoredSecret).where(StoredSecret.name.startswith("oauth/")))

    found = (await checks_of(settings, database))["MCP server shop"]

    assert "its secrets cannot be opened" in found.finding
