"""Tokens, codes, verifiers and secrets of OAuth are nowhere but in the requests that need them."""

import base64
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.core.database import Database
from app.models import Base
from app.state import Providers
from tests.mcp.test_oauth import BACK, make
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber
from tests.support.oauth_server import CLIENT_SECRET, OAuthServer
from tests.support.planted_secrets import MARK
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.tool_server import tool_server
from tests.tools.test_canaries import files_of, paths

pytestmark = pytest.mark.anyio
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "base64": lambda token: base64.b64encode(token.encode()).decode(),
    "URL": lambda token: quote(f"<{token}>", safe=""),
}


@pytest.fixture
async def oauth() -> AsyncIterator[OAuthServer]:
    async with tool_server() as server:
        server.respond = oauth = OAuthServer(server, has_client_secret=True)
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


async def rows_of(database: Database) -> str:
    """Return every row of every table, as a copy of the database would have it."""
    async with database.reading() as db:
        rows = [
            str((table.name, *row))
            for table in Base.metadata.sorted_tables
            for row in await db.execute(select(table))
        ]
    assert any("'secrets'" in row for row in rows)
    return "\n".join(rows)


def hits(told: Mapping[str, str], secrets: set[str]) -> dict[str, list[str]]:
    """Return the secrets, in any of their forms, by the place where they are."""
    found = {
        where: [
            secret for secret in secrets if any(form(secret) in text for form in FORMS.values())
        ]
        for where, text in told.items()
    }
    return {where: each for where, each in found.items() if each}


async def test_grant_is_in_no_prompt_event_ledger_export_error_log_or_row(
    client: httpx2.AsyncClient,
    database: Database,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    oauth: OAuthServer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    oauth.lasts_seconds = 1  # so that each call renews the token
    told: dict[str, str] = {}

    async def send(method: str, path: str, **body: Any) -> httpx2.Response:
        response = await client.request(method, path, json=body or None)
        told[f"{method} {path} {len(told)}"] = f"{response.headers} {response.text}"
        return response

    server_id = (await make(client, oauth, grant="authorization_code")).json()["id"]
    path = f"/mcp-servers/{server_id}/authorization"
    states: set[str] = set()

    async def begin() -> dict[str, str]:
        begun: dict[str, str] = (await client.post(path, json={"redirect_uri": BACK})).json()
        state = parse_qs(urlsplit(begun["authorization_url"]).query)["state"][0]
        told[f"begin {len(told)}"] = str(begun).replace(state, "")  # its URL has to have it
        states.add(state)
        return oauth.visit(begun["authorization_url"])

    oauth.refuses_clients = True  # and says in its error what was sent
    assert (await send("POST", f"{path}/code", **await begin())).status_code == 422
    oauth.refuses_clients = False
    answer = await begin()
    assert (await send("POST", f"{path}/code", **answer | {"state": "wrong"})).status_code == 422
    assert (await send("POST", f"{path}/code", **answer)).status_code == 200
    assert (await send("POST", f"{path}/code", **answer)).status_code == 422

    await send("PATCH", f"/agents/{agent_id}", tools=[{"mcp_server_id": server_id}])
    for form in (*FORMS.values(), None):  # the last time the renewal is refused with its own words
        oauth.echo = form or str
        oauth.refuses_refresh = form is None
        chat_model.script = [(("shop__whoami", "{}"),)]
        message = {"session_id": session_id, "content": "Who am I?"}
        headers = {"accept": "text/event-stream"}
        stream = await client.post("/messages/text", json=message, headers=headers)
        told[f"events {form}"] = stream.text
    assert (await send("POST", f"/mcp-servers/{server_id}/refresh")).status_code == 422

    issued = {f"{MARK}access-token-{number}" for number in range(1, len(oauth.grants) + 1)}
    used = {name: {grant[name] for grant in oauth.grants if name in grant} for name in
            ("code", "code_verifier", "client_secret", "refresh_token")}  # fmt: skip
    assert all(used.values()), used
    secrets = issued.union(*used.values()) | states
    assert CLIENT_SECRET in secrets
    assert len(oauth.calls) == len(FORMS)
    prompts = [line.content for each in chat_model.requests for line in each.messages]
    assert sum("[secret Authorization]" in prompt for prompt in prompts) >= len(FORMS)
    told |= {"prompts": " ".join(prompts), "log": caplog.text, "rows": await rows_of(database)}
    turns = (await client.get("/turns", params={"session_id": session_id})).json()
    more = [f"/turns/{turn['id']}{end}" for turn in turns for end in ("", "/events")]
    for place in (*await paths(client, session_id, turns[0]), *more, f"/mcp-servers/{server_id}"):
        response = await client.get(place)
        assert response.status_code == 200, f"{place}: {response.text}"
        told[place] = response.text
    if database.is_sqlite:
        told |= files_of(tmp_path)
    assert hits(told, secrets) == {}
