"""An agent with tools, a model that calls them by a script, and a runner that does what is said."""

from dataclasses import fields, replace
from typing import Any

import httpx2
import pytest

from app.services.tool_ports import AgentTools
from app.state import State
from tests.support.scripted_tools import ScriptedChatModel, ScriptedRunner, tool_body
from tests.support.tool_turns import GiveTools, ToolTurns


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel()


@pytest.fixture
def runner(state: State) -> ScriptedRunner:
    runner = ScriptedRunner()
    engine: Any = state["turns"]
    engine._runtime = replace(engine._runtime, tool_runner=runner)  # noqa: SLF001
    return runner


@pytest.fixture
def give_tools(client: httpx2.AsyncClient, agent_id: str) -> GiveTools:
    async def give(tools: AgentTools) -> None:
        """Let the agent have tools, by the API."""
        created = [
            (await client.post("/tools", json=tool_body(tool))).json()
            for tool in tools.tools.values()
        ]
        policy = {field.name: getattr(tools.policy, field.name) for field in fields(tools.policy)}
        changes = {"tools": [{"tool_id": tool["id"]} for tool in created], "tool_policy": policy}
        response = await client.patch(f"/agents/{agent_id}", json=changes)
        assert response.status_code == 200, response.text

    return give


@pytest.fixture
def tool_turns(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> ToolTurns:
    return ToolTurns(client, session_id, give_tools, chat_model, runner)
