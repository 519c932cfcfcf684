"""What comes after a turn that waits for an action: later events of its stream, later messages."""

from uuid import UUID

import anyio
import pytest

from app.core.database import Database
from app.core.security import ADMIN
from app.services.turns import subscribe
from app.state import State
from tests.conftest import StartServer
from tests.support.tool_turns import APPROVED_TOOL, ToolTurns
from tests.support.turns import Gate

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("runs_on", ["the same server", "another server"])
@pytest.mark.parametrize("settings", [pytest.param("postgres", marks=pytest.mark.postgres)],
                         indirect=True)  # SQLite has one server  # fmt: skip
async def test_old_action_does_not_end_a_stream(
    tool_turns: ToolTurns,
    state: State,
    database: Database,
    second_server: StartServer,
    runs_on: str,
) -> None:
    turn, call_id = await tool_turns.wait_for(APPROVED_TOOL, "One.", ("act", "{}"))
    turn_id = UUID(turn["id"])
    gate = Gate()

    async def hold(_number: int) -> None:
        await gate()

    tool_turns.chat_model.while_thinking = hold
    async with second_server() as other:
        await tool_turns.resolve(call_id, decision="approve")
        await gate.arrived.wait()
        engine = (state if runs_on == "the same server" else other)["turns"]
        live = await engine.find(ADMIN, turn_id)
        kinds: list[str] = []
        with anyio.fail_after(60):
            async for batch in subscribe(engine, database, live, 0):
                kinds += [event.type.value for event in batch]
                if kinds[-1] == "turn.requires_action":  # it ends while these are on their way
                    gate.opened.set()
                    await (await state["turns"].find(ADMIN, turn_id)).settled.wait()

    assert kinds.count("turn.requires_action") == 1
    assert kinds[-1] == "turn.completed"


async def test_newest_action_ends_a_stream(
    tool_turns: ToolTurns, state: State, database: Database
) -> None:
    turn, call_id = await tool_turns.wait_for(APPROVED_TOOL)
    tool_turns.chat_model.script = [(("act", "{}"),)]
    await tool_turns.resolve(call_id, decision="approve")
    again = await tool_turns.turn(turn["id"], wait_seconds=60)
    while again["status"] != "requires_action":
        again = await tool_turns.turn(turn["id"], wait_seconds=60)
    live = await state["turns"].find(ADMIN, UUID(turn["id"]))

    with anyio.fail_after(60):
        kinds = [
            event.type.value
            async for batch in subscribe(state["turns"], database, live, 0)
            for event in batch
        ]

    assert kinds.count("turn.requires_action") == 2
    assert kinds[-1] == "turn.requires_action"


async def test_messages_behind_a_waiting_turn_are_refused_or_wait(tool_turns: ToolTurns) -> None:
    turn, call_id = await tool_turns.wait_for(APPROVED_TOOL)
    body = {"session_id": tool_turns.session_id, "content": "And?"}
    path, later = "/messages/text", {"prefer": "respond-async"}

    refused = await tool_turns.client.post(path, json=body | {"on_busy": "reject"})
    queued = await tool_turns.client.post(path, json=body | {"on_busy": "enqueue"}, headers=later)

    assert (refused.status_code, refused.json()["code"]) == (409, "session-busy")
    assert queued.json()["status"] == "queued"
    assert (await tool_turns.turn(turn["id"]))["status"] == "requires_action"
    await tool_turns.resolve(call_id, decision="approve")
    ended = await tool_turns.turn(queued.json()["id"], wait_seconds=60)
    assert ended["status"] == "completed"
    assert (await tool_turns.turn(turn["id"]))["status"] == "completed"
