"""What tools cost and how they are counted: reports, limits of a turn, metrics, full results."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.core.database import Database
from app.core.security import ADMIN
from app.models import ToolCall, utc_now
from app.services.tool_ports import (
    Approval,
    Effect,
    OnUnknown,
    ToolKind,
    ToolOutcome,
    ToolPolicy,
    ToolResult,
)
from app.services.turns.storage import leases, ledger
from app.state import State
from tests.support.scripted_tools import agent_tools, pinned
from tests.support.sse import parse
from tests.support.tool_turns import APPROVED_TOOL, CLIENT_TOOL, ToolTurns
from tests.support.turns import Gate, abandon, wait_until_settled

pytestmark = pytest.mark.anyio

FAILURE = ToolResult(ToolOutcome.FAILED, "No.", error_code="tool-failed")
PAID = pinned("paid", price_usd=0.25)


async def by_tool(client: httpx2.AsyncClient, **query: str) -> list[dict[str, Any]]:
    response = await client.get("/usage", params={"group_by": "tool", **query})
    assert response.status_code == 200, response.text
    return sorted(response.json(), key=lambda row: row["tool_name"])


async def tool_figures(client: httpx2.AsyncClient) -> dict[str, float]:
    """Return the samples of tool calls by name and labels."""
    text = (await client.get("/metrics")).text
    return {
        " ".join([sample.name.removeprefix("agent_platform_"), *sorted(sample.labels.values())]): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "tool_call" in sample.name and not sample.name.endswith("_bucket")
    }


async def test_report_by_tool_has_calls_failures_time_and_cost(tool_turns: ToolTurns) -> None:
    await tool_turns.give(agent_tools(PAID, pinned("free")))
    tool_turns.runner.answers["free"] = FAILURE
    tool_turns.chat_model.script = [(("paid", "{}"), ("free", "{}"), ("paid", '{"n":2}'))]
    await tool_turns.send()
    tool_turns.chat_model.script = [(("paid", '{"n":3}'),)]
    await tool_turns.send()

    free, paid = await by_tool(tool_turns.client)

    assert (paid["tool_name"], paid["tool_calls"], paid["tool_failures"]) == ("paid", 3, 0)
    assert (paid["turns"], paid["cost_usd"], paid["prompt_tokens"]) == (2, 0.75, 0)
    assert (free["tool_name"], free["tool_calls"], free["tool_failures"]) == ("free", 1, 1)
    assert (free["turns"], free["cost_usd"]) == (1, None)
    assert 0 <= paid["tool_ms"] < 60_000


async def test_time_of_a_call_is_exact(tool_turns: ToolTurns, database: Database) -> None:
    await tool_turns.give(agent_tools(pinned("free")))
    tool_turns.chat_model.script = [(("free", "{}"),)]
    await tool_turns.send()
    began = utc_now()
    async with database.transaction() as db:
        ended = began + timedelta(seconds=1, milliseconds=250)
        await db.execute(update(ToolCall).values(started_at=began, ended_at=ended))

    [row] = await by_tool(tool_turns.client)

    assert row["tool_ms"] == pytest.approx(1250, abs=1)


async def test_report_by_tool_can_be_grouped_and_filtered_further(
    tool_turns: ToolTurns, agent_id: str
) -> None:
    await tool_turns.give(agent_tools(PAID))
    tool_turns.chat_model.script = [(("paid", "{}"),)]
    await tool_turns.send()

    [row] = await by_tool(tool_turns.client, group_by="day,agent,tool", agent_id=agent_id)
    assert (row["agent_id"], row["day"]) == (agent_id, utc_now().date().isoformat())
    assert row["tool_calls"] == 1
    assert await by_tool(tool_turns.client, key_id="00000000") == []
    assert len(await by_tool(tool_turns.client, session_id=tool_turns.session_id)) == 1


async def test_calls_that_nobody_made_are_not_reported(
    tool_turns: ToolTurns, database: Database
) -> None:
    turn, call_id = await tool_turns.wait_for(APPROVED_TOOL, ("act", "{}"), ("nothing", "{}"))
    await tool_turns.resolve(call_id, decision="deny")
    await wait_until_settled(database)

    assert (await tool_turns.turn(turn["id"]))["status"] == "completed"
    assert await by_tool(tool_turns.client) == []


async def test_output_of_the_callers_own_code_is_a_call(
    tool_turns: ToolTurns, database: Database
) -> None:
    _, call_id = await tool_turns.wait_for(CLIENT_TOOL)
    await tool_turns.resolve(call_id, output=1)
    await wait_until_settled(database)

    [row] = await by_tool(tool_turns.client)

    assert (row["tool_calls"], row["tool_failures"], row["tool_ms"]) == (1, 0, 0)


async def test_report_by_tool_survives_the_session_and_forgets_the_user(
    tool_turns: ToolTurns, agent_id: str
) -> None:
    client = tool_turns.client
    body = {"agent_id": agent_id, "user_id": "user-1"}
    session_id = (await client.post("/sessions", json=body)).json()["id"]
    await tool_turns.give(agent_tools(PAID))
    tool_turns.chat_model.script = [(("paid", "{}"), ("paid", '{"n":2}'))]
    message = {"session_id": session_id, "content": "Go"}
    assert (await client.post("/messages/text", json=message)).status_code == 200
    before = await by_tool(client, group_by="tool,model")

    assert (await client.delete("/users/user-1")).status_code == 200

    assert await by_tool(client, group_by="tool,model") == before
    [row] = await by_tool(client, group_by="tool,user")
    assert row["user_id"].startswith("deleted-")
    assert row["tool_calls"] == 2


@pytest.mark.parametrize(("effect", "begins"), [(Effect.IDEMPOTENT, 2), (Effect.ONCE, 1)])
@pytest.mark.parametrize("approval", [Approval.NEVER, Approval.ALWAYS])
async def test_calls_that_a_killed_server_began_are_on_the_bill(
    tool_turns: ToolTurns,
    state: State,
    database: Database,
    effect: Effect,
    begins: int,
    approval: Approval,
) -> None:
    gate = Gate()

    async def hold(_call: object) -> None:
        await gate()

    tool_turns.runner.while_running = hold
    await tool_turns.give(
        agent_tools(
            pinned("act", effect, approval=approval, price_usd=0.5),
            policy=ToolPolicy(on_unknown=OnUnknown.TELL),
        )
    )
    tool_turns.chat_model.script = [(("act", "{}"),)]
    live = await state["turns"].start(ADMIN, UUID(tool_turns.session_id), "Go")
    turn_id = str(live.record.id)
    if approval is Approval.ALWAYS:
        await state["turns"].wait(live)
        [action] = (await tool_turns.turn(turn_id))["required_actions"]
        await tool_turns.resolve(action["call_id"], decision="approve")
    await gate.arrived.wait()
    await abandon(database, live.record.id)
    tool_turns.runner.while_running = None

    [(record, recoveries)] = await database.run(
        leases.recover_expired, UUID(int=2), all_others=False
    )
    await state["turns"].recover(record, recoveries)
    await wait_until_settled(database)

    turn = await tool_turns.turn(turn_id)
    assert turn["status"] == "completed"
    assert turn["usage"]["cost_usd"] == 0.5 * begins
    [row] = await by_tool(tool_turns.client)
    assert row["cost_usd"] == 0.5 * begins


@pytest.mark.parametrize(("limit_usd", "runs"), [(0.5, 2), (0.6, 2), (0.75, 3), (10, 3)])
async def test_turn_spends_no_more_than_its_limit_on_calls(
    tool_turns: ToolTurns, limit_usd: float, runs: int
) -> None:
    policy = ToolPolicy(max_usd_per_turn=limit_usd)
    await tool_turns.give(agent_tools(PAID, policy=policy))
    tool_turns.chat_model.script = [tuple(("paid", f'{{"n":{n}}}') for n in range(3))]

    reply = (await tool_turns.send()).json()

    turn = await tool_turns.turn(reply["turn_id"])
    assert len(tool_turns.runner.calls) == runs
    statuses = [call["status"] for call in turn["tool_calls"]]
    assert statuses == ["completed"] * runs + ["failed"] * (3 - runs)
    refused = [call["error"]["code"] for call in turn["tool_calls"] if call["error"]]
    assert refused == ["tool-limit"] * (3 - runs)
    assert reply["content"] == "Done."


async def test_turn_whose_money_is_spent_answers_without_tools(tool_turns: ToolTurns) -> None:
    policy = ToolPolicy(max_usd_per_turn=0.25)
    await tool_turns.give(agent_tools(PAID, pinned("free"), policy=policy))
    tool_turns.chat_model.script = [(("paid", "{}"), ("free", "{}")), ("Enough.",)]

    stream = await tool_turns.send(accept="text/event-stream")

    completed = parse(stream.text.split("\n"))[-1].data
    assert completed["message"]["content"] == "Enough."
    assert [request.may_call_tools for request in tool_turns.chat_model.requests] == [True, False]
    assert completed["stop_reason"] == "max_usd_per_turn"


async def test_calls_are_counted_once_each(tool_turns: ToolTurns, database: Database) -> None:
    await tool_turns.give(
        agent_tools(
            pinned("look_up"),
            pinned("fails"),
            pinned("act", Effect.ONCE, approval=Approval.ALWAYS),
            pinned("ask", Effect.ONCE, kind=ToolKind.CLIENT),
        )
    )
    tool_turns.runner.answers["fails"] = FAILURE
    tool_turns.chat_model.script = [
        (("look_up", "{}"), ("fails", "{}"), ("none", "{}"), ("act", "{}"), ("ask", "{}")),
        (("ask", "{}"),),
    ]
    waiting = (await tool_turns.send()).json()
    act, ask = [action["call_id"] for action in waiting["required_actions"]]
    figures = await tool_figures(tool_turns.client)
    assert figures["tool_calls_total completed http"] == 1
    await tool_turns.resolve(act, decision="deny")
    await tool_turns.resolve(ask, output=1)
    await wait_until_settled(database)
    await tool_turns.client.post(f"/turns/{waiting['id']}/cancel")

    assert await tool_figures(tool_turns.client) == {
        "tool_calls_total completed http": 1,
        "tool_calls_total failed http": 1,
        "tool_calls_total failed unknown": 1,
        "tool_calls_total denied http": 1,
        "tool_calls_total client completed": 1,
        "tool_calls_total cancelled client": 1,
        "tool_call_seconds_count http": 2,
        "tool_call_seconds_sum http": pytest.approx(0, abs=60),
    }


async def test_full_results_are_dropped_after_their_time(
    tool_turns: ToolTurns, state: State, database: Database
) -> None:
    assert not state["turns"].is_draining
    await tool_turns.give(agent_tools(pinned("long"), pinned("short")))
    result = ToolResult(ToolOutcome.COMPLETED, "cut", stored_text="all of it")
    tool_turns.runner.answers["long"] = result
    tool_turns.chat_model.script = [(("long", "{}"), ("short", "{}"))]
    reply = (await tool_turns.send()).json()
    calls = (await tool_turns.turn(reply["turn_id"]))["tool_calls"]
    path = f"/tool-calls/{calls[0]['id']}"
    assert (await tool_turns.client.get(path)).json()["stored_result"] == "all of it"

    await database.run(ledger.prune_results, utc_now() - timedelta(days=1))
    assert (await tool_turns.client.get(path)).json()["stored_result"] == "all of it"
    may_be_more = await database.run(ledger.prune_results, utc_now() + timedelta(days=1))

    assert not may_be_more
    shown = (await tool_turns.client.get(path)).json()
    assert (shown["stored_result"], shown["result"]) == (None, "cut")
