"""Tools of the agent in unstored turns: run as ever, and written nowhere."""

from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import func, select

from app.core.database import Database
from app.core.security import ADMIN
from app.models import ToolCall, TurnStep
from app.services.ports import ToolDefinition
from app.services.prompt_lines import PromptMessage, PromptResult
from app.services.tool_ports import (
    Approval,
    ApprovalBy,
    Effect,
    ToolKind,
    ToolOutcome,
    ToolQuestion,
    ToolResult,
)
from app.services.turns import LiveTurn, RequestKey, TurnOptions, TurnRequest
from app.services.turns.errors import ToolsNotTaken, TurnCancellation
from app.state import State
from tests.support.scripted_tools import ScriptedChatModel, ScriptedRunner, agent_tools, pinned
from tests.turns.tools.conftest import GiveTools

pytestmark = pytest.mark.anyio


async def start(state: State, agent_id: str, **changes: Any) -> LiveTurn:
    request = TurnRequest(prompt=(PromptMessage("user", "Go"),), **changes)
    options = TurnOptions(
        key=RequestKey("k", b"f" * 32), keeps_content=False, agent=UUID(agent_id), request=request
    )
    return await state["turns"].start(ADMIN, UUID(int=0), "", None, options)


async def written(database: Database) -> int:
    async with database.reading() as db:
        counts = [
            await db.scalar(select(func.count()).select_from(table))
            for table in (ToolCall, TurnStep)
        ]
    return sum(count or 0 for count in counts)


@pytest.mark.parametrize("effect", list(Effect))
async def test_tool_is_run_and_nothing_of_it_is_stored(
    state: State,
    database: Database,
    agent_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    effect: Effect,
) -> None:
    await give_tools(agent_tools(pinned("look_up", effect=effect)))
    chat_model.script = [("Let me see.", ("look_up", '{"n":1}')), ("It is 7.",)]

    live = await start(state, agent_id)
    reply = await state["turns"].result(live)

    assert reply.content == "Let me see.\n\nIt is 7."
    assert reply.usage.prompt_tokens == 20
    (call,) = runner.calls
    assert (call.arguments, call.session_id) == ('{"n":1}', None)
    assert isinstance(chat_model.requests[1].messages[-1], PromptResult)
    assert await written(database) == 0


async def test_tool_that_somebody_must_approve_or_run_is_refused_to_the_model(
    state: State,
    database: Database,
    agent_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(
        agent_tools(
            pinned("refund", approval=Approval.ALWAYS, approval_by=ApprovalBy.OPERATOR),
            pinned("locate", kind=ToolKind.CLIENT),
        )
    )
    chat_model.script = [(("refund", "{}"), ("locate", "{}")), ("I cannot.",)]

    reply = await state["turns"].result(await start(state, agent_id))

    assert reply.content == "I cannot."
    assert runner.calls == []
    *_, first, second = chat_model.requests[1].messages
    assert "needs a conversation that is stored" in first.content
    assert first.content == second.content
    assert await written(database) == 0


async def test_agent_with_tools_of_its_own_takes_none_from_a_request(
    state: State, agent_id: str, give_tools: GiveTools
) -> None:
    await give_tools(agent_tools(pinned("look_up")))

    with pytest.raises(ToolsNotTaken):
        await start(state, agent_id, tools=(ToolDefinition("weather", "", {"type": "object"}),))


async def test_request_with_a_key_is_not_answered_anew_where_tools_may_have_acted(
    state: State,
    client: httpx2.AsyncClient,
    agent_id: str,
    give_tools: GiveTools,
) -> None:
    await give_tools(agent_tools(pinned("look_up")))
    live = await start(state, agent_id)
    live.scope.cancel()
    await state["turns"].wait(live)

    with pytest.raises(TurnCancellation):
        await start(state, agent_id)
    assert len((await client.get("/turns")).json()) == 1


async def test_question_of_an_mcp_server_is_refused(
    state: State,
    database: Database,
    agent_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("refund", effect=Effect.READ)))
    question = ToolQuestion("Really?", None, None, {})
    runner.answers["refund"] = ToolResult(ToolOutcome.ASKS, "", question=question)
    chat_model.script = [(("refund", "{}"),), ("I cannot.",)]

    reply = await state["turns"].result(await start(state, agent_id))

    assert reply.content == "I cannot."
    last = chat_model.requests[1].messages[-1]
    assert "needs a conversation that is stored" in last.content
    assert await written(database) == 0
