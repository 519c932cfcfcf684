"""`POST /tools/{id}/test`: one call, shown as it was sent, with secrets masked."""

from urllib.parse import quote

import httpx2
import pytest

from tests.support import planted_secrets
from tests.support.tool_server import Answer, ToolServer
from tests.tools.conftest import definition, make_tool, store_secret

pytestmark = pytest.mark.anyio


async def test_call_is_made_and_shown_without_its_secrets(
    client: httpx2.AsyncClient, server: ToolServer
) -> None:
    await store_secret(client, server.allowed)
    http = {
        "headers": {"Authorization": "Bearer {{secrets.SHOP_KEY}}", "X-User": "{{user.id}}"},
        "query": {"key": "{{secrets.SHOP_KEY}}"},
    }
    tool = await make_tool(client, **definition(server, http=http))

    body = {"arguments": {"number": "7"}, "user_id": "user-1"}
    tested = (await client.post(f"/tools/{tool['id']}/test", json=body)).json()

    assert (tested["status"], tested["http_status"], tested["error"]) == ("completed", 200, None)
    assert tested["result"] == '{"ok":true}'
    assert tested["duration_ms"] > 0
    shown = tested["request"]
    masked = quote("[secret SHOP_KEY]", safe="")
    assert (shown["method"], shown["url"]) == ("GET", f"{server.url}/orders/7?key={masked}")
    assert shown["headers"]["Authorization"] == "Bearer [secret SHOP_KEY]"
    assert shown["headers"]["X-User"] == "user-1"
    assert shown["body"] is None
    assert server.requests[0].headers["authorization"] == f"Bearer {planted_secrets.TOOL_SECRET}"


async def test_once_needs_confirmation(client: httpx2.AsyncClient, server: ToolServer) -> None:
    tool = await make_tool(client, **definition(server, http={"method": "POST"}))
    path, body = f"/tools/{tool['id']}/test", {"arguments": {"number": "7"}}

    refused = await client.post(path, json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "tool-not-testable")
    assert server.requests == []
    confirmed = await client.post(path, json=body | {"confirm": True})
    assert confirmed.json()["status"] == "completed"
    assert confirmed.json()["request"]["body"] == "{}"


async def test_wrong_arguments_are_not_sent(client: httpx2.AsyncClient, server: ToolServer) -> None:
    tool = await make_tool(client, **definition(server))

    tested = (await client.post(f"/tools/{tool['id']}/test", json={})).json()

    assert (tested["status"], tested["error"]["code"]) == ("failed", "arguments-invalid")
    assert tested["request"] is None
    assert server.requests == []


async def test_failure_of_the_tool_is_an_answer(
    client: httpx2.AsyncClient, server: ToolServer
) -> None:
    server.answer = Answer(500, b"out of paper", "text/plain")
    tool = await make_tool(client, **definition(server))

    tested = await client.post(f"/tools/{tool['id']}/test", json={"arguments": {"number": "7"}})

    assert tested.status_code == 200
    assert (tested.json()["status"], tested.json()["http_status"]) == ("failed", 500)
    assert "out of paper" in tested.json()["result"]
    assert "paper" not in tested.json()["error"]["detail"]


async def test_tool_of_a_client_cannot_be_called(client: httpx2.AsyncClient) -> None:
    tool = await make_tool(client, name="pick", description="Picks.", kind="client")

    refused = await client.post(f"/tools/{tool['id']}/test", json={"confirm": True})
    assert (refused.status_code, refused.json()["code"]) == (422, "tool-not-testable")
