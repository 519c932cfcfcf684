"""Tools on a whole server that is killed: an effect happens at most once, and no turn is stuck."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.conftest import Postgres
from tests.support.planted_secrets import PROVIDER_KEY
from tests.support.provider import Provider
from tests.support.recycled_databases import RecycledDatabases
from tests.support.reports import FIGURES
from tests.support.server_process import ServerProcess
from tests.support.tool_server import ToolServer, tool_server
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

ROUNDS = int(os.environ.get("TOOL_KILLS", "3"))
"""How often a server is killed; 63 in full, in the middle of 504 calls."""
TURNS_AT_ONCE = 8
ENDED = {"completed", "failed", "cancelled"}


def settings(provider: Provider, tools: ToolServer) -> dict[str, str]:
    return {
        "OPENAI_API_KEY": PROVIDER_KEY,
        "OPENAI_BASE_URL": provider.base_url,
        "TOOLS_ALLOWED_ADDRESSES": tools.allowed,
    }


async def agent_with(
    client: httpx2.AsyncClient, tools: ToolServer, effect: str, **policy: object
) -> str:
    tool = await client.post(
        "/tools",
        json={
            "name": "charge",
            "description": "Charges a card.",
            "kind": "http",
            "effect": effect,
            "approval": "never",
            "http": {"method": "POST", "url": f"{tools.url}/charge"},
        },
    )
    assert tool.status_code == 201, tool.text
    body = {"name": "Ada", "tools": [{"tool_id": tool.json()["id"]}], "tool_policy": policy}
    agent = await client.post("/agents", json=body)
    assert agent.status_code == 201, agent.text
    return agent.json()["id"]


async def send(client: httpx2.AsyncClient, agent_id: str) -> str:
    """Send a message to a new session, and return the id of its turn."""
    session = (await client.post("/sessions", json={"agent_id": agent_id})).json()
    body = {"session_id": session["id"], "content": "Charge it."}
    headers = {"prefer": "respond-async"}
    return (await client.post("/messages/text", json=body, headers=headers)).json()["id"]


async def turn_of(client: httpx2.AsyncClient, turn_id: str) -> dict[str, Any]:
    return (await client.get(f"/turns/{turn_id}")).json()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        provider.chat.text = "It is done."
        provider.chat.calls = [("charge", "{}")]
        yield provider


async def test_agent_uses_a_tool_and_answers(provider: Provider, tmp_path: Path) -> None:
    async with tool_server() as tools:
        with ServerProcess(tmp_path, **settings(provider, tools)) as server:
            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
                agent_id = await agent_with(client, tools, "once")
                session = (await client.post("/sessions", json={"agent_id": agent_id})).json()
                body = {"session_id": session["id"], "content": "Charge it."}
                reply = (await client.post("/messages/text", json=body)).json()

                assert reply["content"] == "It is done."
                [request] = tools.requests
                turn = await turn_of(client, reply["turn_id"])
                assert request.headers["idempotency-key"] == turn["tool_calls"][0]["id"]
                first, second = [received.body for received in provider.to("chat")]
                assert first["tools"][0]["function"]["name"] == "charge"
                assert second["messages"][-1] == {
                    "role": "tool",
                    "content": '{"ok":true}',
                    "tool_call_id": "call_0",
                }
                assert second["messages"][-2]["tool_calls"][0]["id"] == "call_0"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def storage(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Settings of an empty database: a SQLite file, and Postgres through PgBouncer."""
    if request.param == "sqlite":
        yield {}
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    databases: RecycledDatabases = request.getfixturevalue("databases")
    name = databases.take(new=True)
    yield {"DATABASE_URL": f"{postgres.pooler.url(name)}?sslmode=disable"}
    databases.give_back(name)


@pytest.mark.timeout(240 + 60 * ROUNDS)
@pytest.mark.parametrize("effect", ["once", "idempotent", "read"])
async def test_killed_server_does_nothing_twice_and_leaves_no_turn_behind(
    provider: Provider,
    tmp_path: Path,
    storage: dict[str, str],
    effect: str,
    record_property: Callable[[str, object], None],
) -> None:
    turn_ids: list[str] = []
    kills = ROUNDS if effect == "once" else max(1, ROUNDS // 3)
    async with tool_server() as tools:
        with ServerProcess(tmp_path, **settings(provider, tools), **storage) as server:
            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
                agent_id = await agent_with(client, tools, effect)
            for number in range(kills):
                # Some are killed before the tool has answered, some behind it.
                gate = anyio.Event()
                tools.hold = gate.wait if number % 2 == 0 else None
                before = len(tools.requests)
                async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
                    turn_ids += [await send(client, agent_id) for _ in range(TURNS_AT_ONCE)]
                    # All of them are in the middle of their call, or just one is.
                    least = before + (TURNS_AT_ONCE if number % 4 == 0 else 1)
                    await until(lambda least=least: len(tools.requests) >= least)
                server.kill()
                gate.set()
                tools.hold = None
                server.start()
            async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:

                async def all_have_ended() -> bool:
                    turns = [await turn_of(client, turn_id) for turn_id in turn_ids]
                    return all(turn["status"] in ENDED for turn in turns)

                await until(all_have_ended, within_seconds=240)
                turns = [await turn_of(client, turn_id) for turn_id in turn_ids]

    sent = Counter(request.headers["idempotency-key"] for request in tools.requests)
    calls = {call["id"]: call for turn in turns for call in turn["tool_calls"]}
    if effect == "once":
        assert max(sent.values()) == 1, "an effect happened twice"
    assert max(sent.values()) <= 1 + 2
    unknown = [turn for turn in turns if turn["status"] == "failed"]
    for turn in unknown:
        assert effect == "once"
        assert turn["error"]["code"] == "unknown-tool-outcome"
        assert [call["status"] for call in turn["tool_calls"]] == ["unknown"]
    for turn in turns:
        if turn["status"] == "completed":
            assert turn["message"]["content"] == "It is done."
            assert {call["status"] for call in turn["tool_calls"]} == {"completed"}
    if effect == "once":
        told = {call_id for call_id, call in calls.items() if call["status"] == "unknown"}
        completed = {call_id for call_id, call in calls.items() if call["status"] == "completed"}
        assert set(sent) <= told | completed, "somebody was charged and nobody is told"
        assert unknown
    by_status = Counter(call["status"] for call in calls.values())
    ended = Counter(turn["status"] for turn in turns)
    figures = (
        f"{effect} on {'Postgres' if storage else 'SQLite'}: {kills} kills, {len(turn_ids)} turns "
        f"({dict(ended)}), {len(sent)} calls sent ({dict(by_status)}), the most often "
        f"{max(sent.values())} times"
    )
    record_property(FIGURES, figures)
