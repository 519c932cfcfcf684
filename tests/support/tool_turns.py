"""A session whose agent has tools: what tests of actions begin with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2

from app.services.tool_ports import AgentTools, Approval, Effect, PinnedTool, ToolKind
from tests.support.scripted_tools import (
    Said,
    ScriptedChatModel,
    ScriptedRunner,
    agent_tools,
    pinned,
)

GiveTools = Callable[[AgentTools], Awaitable[None]]
APPROVED_TOOL = pinned("act", Effect.ONCE, approval=Approval.ALWAYS)
"""Each call of it waits for an approval."""
CLIENT_TOOL = pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)
"""Each call of it waits for its output."""


async def send(
    client: httpx2.AsyncClient, session_id: str, content: str = "Go", **headers: str
) -> httpx2.Response:
    body = {"session_id": session_id, "content": content}
    return await client.post("/messages/text", json=body, headers=headers)


@dataclass(frozen=True)
class ToolTurns:
    """A session, its agent's tools, the model that calls them, and what runs them."""

    client: httpx2.AsyncClient
    session_id: str
    give: GiveTools
    chat_model: ScriptedChatModel
    runner: ScriptedRunner

    async def send(self, content: str = "Go", **headers: str) -> httpx2.Response:
        return await send(self.client, self.session_id, content, **headers)

    async def wait_for(self, tool: PinnedTool, *said: Said) -> tuple[dict[str, Any], str]:
        """Begin a turn that waits: the model says `said`, by default one call of the tool.

        Return the turn, and the id of its first call that waits.
        """
        await self.give(agent_tools(tool))
        self.chat_model.script = [said or ((tool.definition.name, "{}"),)]
        waiting = await self.send()
        assert waiting.status_code == 202, waiting.text
        turn = waiting.json()
        return turn, turn["required_actions"][0]["call_id"]

    async def resolve(self, call_id: str, **action: object) -> httpx2.Response:
        return await self.client.post(f"/tool-calls/{call_id}/resolution", json=action)

    async def turn(self, turn_id: str, **query: str | float) -> dict[str, Any]:
        response = await self.client.get(f"/turns/{turn_id}", params=query)
        assert response.status_code == 200, response.text
        return response.json()
