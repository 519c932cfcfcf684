"""A secret that a tool uses, and echoes in every way, is nowhere but in the tool's request."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from app.core.database import Database
from tests.support import planted_secrets
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.tool_server import Answer, ToolServer
from tests.tools.conftest import definition, make_tool, store_secret

pytestmark = pytest.mark.anyio

SECRET = f'{planted_secrets.TOOL_SECRET}/+?"'
FORMS = {
    "plain": SECRET,
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "for a URL": quote(SECRET, safe=""),
    "as JSON": json.dumps(SECRET)[1:-1],
}


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel()


def found_in(text: str) -> list[str]:
    """Return the forms of the secret that a text has."""
    return [name for name, form in FORMS.items() if form in text]


@pytest.mark.parametrize("status", [200, 302, 403, 500])
@pytest.mark.parametrize("form", FORMS)
async def test_secret_is_in_no_prompt_event_ledger_export_report_or_log(
    client: httpx2.AsyncClient,
    database: Database,
    chat_model: ScriptedChatModel,
    server: ToolServer,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    form: str,
    status: int,
) -> None:
    await store_secret(client, f"127.0.0.1:{server.port}", value=SECRET)
    headers = {"Authorization": "Bearer {{secrets.SHOP_KEY}}"}
    tool = await make_tool(client, **definition(server, http={"headers": headers}))
    body = {"name": "Ada", "tools": [{"tool_id": tool["id"]}]}
    agent = (await client.post("/agents", json=body)).json()
    session = (await client.post("/sessions", json={"agent_id": agent["id"]})).json()
    echo = f'You sent "{FORMS[form]}" to us.'
    more = {"Location": f"{server.url}/{FORMS['for a URL']}"} if status == 302 else {}
    server.answer = Answer(status, echo.encode(), "text/plain; charset=utf-8", more)
    chat_model.script = [(("get_order", '{"number": "7"}'),), ("I do not know.",)]
    message = {"session_id": session["id"], "content": "Where is it?"}

    stream = await client.post(
        "/messages/text", json=message, headers={"accept": "text/event-stream"}
    )

    [request] = server.requests
    assert planted_secrets.TOOL_SECRET in request.headers["authorization"]
    prompts = " ".join(line.content for each in chat_model.requests for line in each.messages)
    assert "[secret SHOP_KEY]" in prompts
    told: dict[str, str] = {"prompts": prompts, "events": stream.text, "log": caplog.text}
    for path in await paths(client, session["id"]):
        response = await client.get(path)
        assert response.status_code == 200, f"{path}: {response.text}"
        told[path] = response.text
    test = await client.post(f"/tools/{tool['id']}/test", json={"arguments": {"number": "7"}})
    told["test of the tool"] = test.text
    if database.is_sqlite:
        told |= files_of(tmp_path)
    hits = {where: found_in(text) for where, text in told.items() if found_in(text)}
    assert hits == {}


def files_of(folder: Path) -> dict[str, str]:
    return {each.name: each.read_bytes().decode("latin-1") for each in folder.glob("*.db*")}


async def paths(
    client: httpx2.AsyncClient, session_id: str, turn: dict[str, Any] | None = None
) -> list[str]:
    """Return what shows a session, a turn of it, by default its only one, and its calls."""
    if turn is None:
        [turn] = (await client.get("/turns", params={"session_id": session_id})).json()
    assert turn
    calls: list[dict[str, Any]] = (await client.get("/tool-calls")).json()
    return [
        f"/turns/{turn['id']}",
        f"/turns/{turn['id']}/events",
        f"/sessions/{session_id}",
        f"/sessions/{session_id}/messages",
        f"/sessions/{session_id}/export",
        "/tool-calls",
        *[f"/tool-calls/{call['id']}" for call in calls],
        "/tools",
        "/secrets",
        "/agents",
        "/audit",
        "/usage?group_by=tool",
        "/metrics",
    ]
