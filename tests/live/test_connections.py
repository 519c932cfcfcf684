"""Who may open a line, what is refused before the upgrade, and what ends an open line."""

from datetime import timedelta
from typing import Any

import anyio
import httpx2
import pytest
from sqlalchemy import update

from app.core.config import Settings
from app.core.database import Database
from app.models import ClientSecret, utc_now
from app.state import State
from tests.conftest import StartServer
from tests.live.conftest import OpenLine, ask, line_of, send_message
from tests.support.fake_providers import FakeChatModel
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.turns import Gate
from tests.support.waiting import until
from tests.support.websocket import UpgradeRefused

pytestmark = pytest.mark.anyio

NOBODY = "01900000-0000-7000-8000-0000000000ff"
ELSEWHERE = "203.0.113.7"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}


async def refusal(open_line: OpenLine, *arguments: Any, **scope: Any) -> UpgradeRefused:
    with pytest.raises(UpgradeRefused) as refused:
        async with open_line(*arguments, **scope):
            pass
    return refused.value


async def key_of(client: httpx2.AsyncClient, *scopes: str, **limits: Any) -> dict[str, Any]:
    body = {"name": "live", "scopes": list(scopes), **limits}
    response = await client.post("/keys", json=body)
    assert response.status_code == 201, response.text
    return response.json()


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {key['key']}"}


@pytest.mark.parametrize(
    "scope",
    [
        {"peer": ELSEWHERE},
        {"headers": {"authorization": "Bearer wrong"}, "peer": ELSEWHERE},
        {"headers": {"origin": "https://elsewhere.example"}},
        {"headers": {"authorization": "Bearer ek_made_up"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.ek_made_up"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"], "peer": ELSEWHERE},
    ],
)
async def test_strangers_are_refused_before_the_upgrade(
    open_line: OpenLine, scope: dict[str, Any]
) -> None:
    refused = await refusal(open_line, **scope)

    assert refused.status == 401
    assert refused.error["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "scope",
    [
        {"headers": ADMIN},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{ADMIN_KEY}"]},
    ],
)
async def test_keys_come_as_a_header_or_as_a_subprotocol(
    open_line: OpenLine, scope: dict[str, Any]
) -> None:
    async with open_line(peer=ELSEWHERE, **scope) as line:
        await line.until("session.created")

    assert line.subprotocol == ("realtime" if "subprotocols" in scope else None)


async def test_keys_need_the_scope_of_turns(
    open_line: OpenLine, client: httpx2.AsyncClient
) -> None:
    reader, writer = await key_of(client, "turns:read"), await key_of(client, "turns:write")

    refused = await refusal(open_line, headers=bearer(reader))
    async with open_line(headers=bearer(writer)) as line:
        response = await ask(line, "Hi.")

    assert refused.status == 403
    assert response["status"] == "completed"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        (f"session_id={NOBODY}", 404, "session_not_found"),
        ("session_id=x", 404, "session_not_found"),
        ("model=agent-nobody", 404, "model_not_found"),
        (f"model={NOBODY}", 404, "model_not_found"),
        ("modle=x", 400, "invalid_value"),
    ],
)
async def test_what_is_asked_for_must_exist(
    open_line: OpenLine, query: str, status: int, code: str
) -> None:
    refused = await refusal(open_line, query)

    assert (refused.status, refused.error["code"]) == (status, code)


async def test_no_other_path_is_a_websocket(open_line: OpenLine) -> None:
    refused = await refusal(open_line, path="/v1/models")

    assert refused.status == 403


async def test_session_of_another_workspace_is_not_found(
    open_line: OpenLine, client: httpx2.AsyncClient, session_id: str
) -> None:
    workspace = (await client.post("/workspaces", json={"name": "Other"})).json()["id"]

    refused = await refusal(
        open_line, f"session_id={session_id}", headers={"x-workspace-id": workspace}
    )

    assert refused.status == 404


async def test_session_token_opens_a_line_of_its_session_alone(
    open_line: OpenLine, client: httpx2.AsyncClient, session_id: str, agent_id: str
) -> None:
    made = await client.post(f"/sessions/{session_id}/tokens", json={})
    other = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
    headers = {"authorization": f"Bearer {made.json()['token']}"}

    async with open_line("", headers=headers, peer=ELSEWHERE) as line:
        created = await line.until("session.created")
        await ask(line, "Hi.")
    refused = await refusal(open_line, f"session_id={other}", headers=headers)

    assert created["session"]["id"].removeprefix("sess_") == session_id.replace("-", "")
    assert refused.status == 404
    messages = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert [message["content"] for message in messages] == ["Hi.", "Hello there!"]


async def test_a_line_goes_on_in_a_session_and_tells_what_was_missed(
    open_line: OpenLine, client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    async with open_line() as line:
        session = (await line.until("session.created"))["session"]["id"]
        await ask(line, "First.")
        question = line.events[1]["item"]["id"]
    sent = {"session_id": session.removeprefix("sess_"), "content": "Meanwhile."}
    assert (await client.post("/messages/text", json=sent)).status_code == 200

    async with open_line(f"session_id={session}&after={question}") as line:
        await line.until("conversation.item.done", 3)
        missed = [e["item"] for e in line.events if e["type"] == "conversation.item.added"]
        await ask(line, "Last.")
    unknown = await refusal(open_line, f"session_id={session}&after=item_{NOBODY}")

    told = [item["content"][0].get("text") or item["content"][0]["transcript"] for item in missed]
    assert told == ["Hello there!", "Meanwhile.", "Hello there!"]
    assert chat_model.prompts[-1][-1] == ("user", "Last.")
    assert len(chat_model.prompts[-1]) == 5
    assert (unknown.status, unknown.error["code"]) == (400, "item_not_found")


async def test_lines_of_a_key_are_few(
    settings: Settings, database: Database, second_server: StartServer, client: httpx2.AsyncClient
) -> None:
    del database
    key, other = await key_of(client, "turns:write"), await key_of(client, "turns:write")
    async with second_server(limit_live_lines_per_key=1, limit_live_lines=2) as server:
        open_line = line_of(settings, server)
        async with open_line(headers=bearer(key)):
            of_key = await refusal(open_line, headers=bearer(key))
            async with open_line(headers=bearer(other)):
                of_server = await refusal(open_line, headers=ADMIN)
        async with open_line(headers=bearer(key)) as line:
            await line.until("session.created")

    assert (of_key.status, of_key.error["code"]) == (429, "too_many_lines")
    assert (of_server.status, of_server.error["code"]) == (503, "lines_full")
    assert int(of_key.headers["retry-after"]) > 0
    assert int(of_server.headers["retry-after"]) > 0


async def test_each_response_counts_as_a_request(
    open_line: OpenLine, client: httpx2.AsyncClient
) -> None:
    key = await key_of(client, "turns:write", requests_per_minute=2)
    async with open_line(headers=bearer(key)) as line:
        responses = [await ask(line, "Hi.") for _ in range(3)]

    # The minute may end between two of them.
    refused = [each["status_details"]["error"] for each in responses if each["status"] == "failed"]
    assert refused
    assert {error["code"] for error in refused} == {"rate_limit_exceeded"}


async def test_used_up_budget_is_told_by_the_code_that_clients_know(
    open_line: OpenLine, client: httpx2.AsyncClient
) -> None:
    key = await key_of(client, "turns:write", tokens_per_day=1)
    async with open_line(headers=bearer(key)) as line:
        response = await ask(line, "Hi.")

    assert response["status"] == "failed"
    assert response["status_details"]["error"]["code"] == "insufficient_quota"


async def test_line_ends_when_its_key_is_revoked(
    open_line: OpenLine, client: httpx2.AsyncClient
) -> None:
    key = await key_of(client, "turns:write")
    async with open_line(headers=bearer(key)) as line:
        await line.until("session.created")
        await client.delete(f"/keys/{key['id']}")
        closed = await line.until_closed()

    assert closed.code == 1008


async def test_draining_server_ends_lines_behind_their_response_and_takes_no_new_ones(
    open_line: OpenLine, state: State, chat_model: FakeChatModel
) -> None:
    gate = Gate()
    chat_model.while_thinking = gate
    async with open_line() as idle, open_line() as busy:
        await idle.until("session.created")
        await send_message(busy, "Hi.")
        await busy.send("response.create")
        await gate.arrived.wait()
        state["turns"].drain()
        closed = await idle.until_closed()
        refused = await refusal(open_line)
        gate.opened.set()
        done = await busy.until("response.done")
        closed_too = await busy.until_closed()

    assert (closed.code, closed_too.code) == (1012, 1012)
    assert (refused.status, refused.error["code"]) == (503, "server_draining")
    assert done["response"]["status"] == "completed"


async def test_nothing_stays_open_behind_a_line(open_line: OpenLine, state: State) -> None:
    async with open_line() as line:
        await line.until("session.created")
        assert state["live"].line_count == 1
        assert state["open_streams"].stream_count == 1
        await anyio.lowlevel.checkpoint()

    await until(lambda: state["live"].line_count == 0 and state["open_streams"].stream_count == 0)


async def secret_of(
    client: httpx2.AsyncClient, headers: dict[str, str] | None = None, **body: Any
) -> dict[str, Any]:
    response = await client.post("/v1/realtime/client_secrets", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def offered(secret: dict[str, Any]) -> dict[str, Any]:
    """Return how a browser presents a secret."""
    protocols = ["realtime", f"openai-insecure-api-key.{secret['value']}"]
    return {"subprotocols": protocols, "peer": ELSEWHERE}


async def test_client_secret_opens_lines_with_its_settings_and_nothing_else(
    open_line: OpenLine, client: httpx2.AsyncClient, agent_id: str, chat_model: FakeChatModel
) -> None:
    session = {"model": agent_id, "instructions": "Rhyme.", "output_modalities": ["text"]}
    secret = await secret_of(client, session=session, user_id="kim")
    headers = {"authorization": f"Bearer {secret['value']}"}

    async with open_line("model=another", **offered(secret)) as line:
        created = (await line.until("session.created"))["session"]
        response = await ask(line, "Hi.")
    elsewhere = [
        (await client.get(path, headers=headers)).status_code
        for path in ("/agents", "/sessions", "/turns", "/me")
    ]

    assert secret["value"].startswith("ek_")
    assert secret["session"]["instructions"] == created["instructions"] == "Rhyme."
    assert response["output"][0]["content"][0]["type"] == "output_text"
    assert chat_model.requests[0].messages[0].content == "Be brief.\n\nRhyme."
    assert set(elsewhere) == {403}
    (stored,) = (await client.get("/sessions")).json()
    assert stored["user_id"] == "kim"


async def test_client_secret_of_a_session_goes_on_in_it_alone(
    open_line: OpenLine, client: httpx2.AsyncClient, session_id: str, agent_id: str
) -> None:
    other = (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]
    secret = await secret_of(client, session_id=session_id)
    of_nobody = await secret_of(client)

    async with open_line("", **offered(secret)) as line:
        created = (await line.until("session.created"))["session"]
    async with open_line(f"session_id={other}", **offered(of_nobody)) as line:
        opened = (await line.until("session.created"))["session"]

    assert created["id"] == "sess_" + session_id.replace("-", "")
    assert opened["id"] != "sess_" + other.replace("-", "")


async def test_client_secret_expires_and_its_open_line_goes_on_until_the_key_ends(
    open_line: OpenLine, client: httpx2.AsyncClient, database: Database
) -> None:
    key = await key_of(client, "turns:write", "sessions:write")
    secret = await secret_of(client, bearer(key), expires_after={"seconds": 3600})
    async with open_line(**offered(secret)) as line:
        await line.until("session.created")
        async with database.transaction() as db:
            past = utc_now() - timedelta(seconds=1)
            await db.execute(update(ClientSecret).values(expires_at=past))

        async def is_refused() -> bool:
            try:
                async with open_line(**offered(secret)):
                    return False
            except UpgradeRefused as refused:
                return refused.status == 401

        await until(is_refused)
        assert (await ask(line, "Still there?"))["status"] == "completed"
        await client.delete(f"/keys/{key['id']}")
        closed = await line.until_closed()

    assert closed.code == 1008


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"session": {"voise": "x"}}, 400, "session.voise"),
        ({"session": {"instructions": "x" * 70_000}}, 400, "session"),
        ({"expires_after": {"seconds": 5}}, 400, "expires_after.seconds"),
        ({"session_id": NOBODY}, 404, "conversation"),
    ],
)
async def test_client_secrets_are_checked(
    client: httpx2.AsyncClient, body: dict[str, Any], status: int, param: str | None
) -> None:
    response = await client.post("/v1/realtime/client_secrets", json=body)

    assert response.status_code == status
    assert response.json()["error"]["param"] == param


async def test_client_secret_without_a_session_needs_the_right_to_make_one(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    key = await key_of(client, "turns:write")
    path = "/v1/realtime/client_secrets"

    refused = await client.post(path, json={}, headers=bearer(key))
    made = await client.post(path, json={"session_id": session_id}, headers=bearer(key))

    assert (refused.status_code, made.status_code) == (403, 200)
