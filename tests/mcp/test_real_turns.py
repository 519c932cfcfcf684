"""Turns whose tools are an MCP server's, with the worker process and a server of the SDK."""

import signal
from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import pytest

from app.core.config import Settings
from app.services.mcp_service.client import McpWorkerClient
from app.state import Providers, State
from tests.mcp.conftest import SdkServer, sdk_server
from tests.mcp.test_turns import until_turn
from tests.support.fake_providers import FakeSpeaker, FakeTranscriber
from tests.support.processes import send_signal
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.tool_turns import send
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def server() -> Iterator[SdkServer]:
    """A server that the test may kill."""
    with sdk_server("modern") as server:
        yield server


@pytest.fixture
def settings(settings: Settings, server: SdkServer) -> Settings:
    return settings.model_copy(update={"tools_allowed_addresses": server.allowed})


@pytest.fixture
def providers(
    chat_model: ScriptedChatModel, transcriber: FakeTranscriber, speaker: FakeSpeaker
) -> Providers:
    """Without a fake for MCP, there is the worker."""
    return Providers(chat_model=chat_model, transcriber=transcriber, speaker=speaker)


def worker_of(state: State) -> McpWorkerClient:
    """Return the client whose process the state's calls run in."""
    directory: Any = state["mcp_directory"]
    return directory._client._remote  # noqa: SLF001


async def give(client: httpx2.AsyncClient, agent_id: str, url: str) -> None:
    body = {"name": "trial", "url": url, "auto_accept": True, "approval": "never"}
    made = await client.post("/mcp-servers", json=body)
    assert made.status_code == 201, made.text
    tools = [{"mcp_server_id": made.json()["id"]}]
    assert (await client.patch(f"/agents/{agent_id}", json={"tools": tools})).status_code == 200


async def test_tool_is_called_and_asks(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    server: SdkServer,
) -> None:
    await give(client, agent_id, server.url)
    chat_model.script = [
        ("One.", ("trial__add", '{"a": 1, "b": 2}'), ("trial__refund", '{"what": "A-17"}'))
    ]

    waiting = await send(client, session_id)

    [action] = waiting.json()["required_actions"]
    assert action["question"]["message"] == "Really A-17?"
    answer = {"answer": {"content": {"sure": True}}}
    taken = await client.post(f"/tool-calls/{action['call_id']}/resolution", json=answer)
    assert taken.status_code == 200, taken.text
    turn_id = taken.json()["turn_id"]
    await until_turn(client, turn_id, "completed")
    turn = (await client.get(f"/turns/{turn_id}")).json()
    assert turn["status"] == "completed"
    assert [call["result"] for call in turn["tool_calls"]] == [
        '{"result":3}',
        '{"result":"A-17: True"}',
    ]


@pytest.mark.parametrize("victim", ["worker", "server"])
async def test_kill_in_the_middle_of_a_call_leaves_its_outcome_unknown(
    client: httpx2.AsyncClient,
    state: State,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    server: SdkServer,
    victim: str,
) -> None:
    chat_model.script = [("One.", ("trial__hold", '{"note": "n"}'))]
    await give(client, agent_id, server.url)
    answers: list[httpx2.Response] = []

    async def ask() -> None:
        answers.append(await send(client, session_id))

    async def is_held() -> bool:
        return (await server.counts())["recorded"] == 1

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await until(is_held)
        pid = worker_of(state).worker_pid if victim == "worker" else server.process.pid
        assert pid
        send_signal(pid, signal.SIGKILL)

    [answer] = answers
    assert (answer.status_code, answer.json()["code"]) == (409, "unknown-tool-outcome")
    [call] = (await client.get("/tool-calls")).json()
    assert (call["status"], call["attempt"]) == ("unknown", 1)
