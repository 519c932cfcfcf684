"""`GET /turns/{id}?wait_seconds=`: of a turn that waits for an action, until it goes on."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest

from app.core.config import Settings
from app.state import State
from tests.conftest import StartServer, client_of
from tests.support.tool_turns import APPROVED_TOOL, CLIENT_TOOL, ToolTurns
from tests.support.turns import Gate
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


class Waiter:
    """A request that waits for a change of a turn."""

    def __init__(self, client: httpx2.AsyncClient, turn_id: str) -> None:
        self._client = client
        self._turn_id = turn_id
        self.answer: dict[str, Any] = {}

    async def run(self) -> None:
        path = f"/turns/{self._turn_id}"
        response = await self._client.get(path, params={"wait_seconds": 60})
        assert response.status_code == 200, response.text
        self.answer = response.json()


async def until_watched(state: State) -> None:
    """Return once somebody waits for a turn on this server."""
    await until(lambda: state["turns"].register_sizes()["watched_turns"] == 1)


async def test_it_is_told_that_the_turn_goes_on(tool_turns: ToolTurns, state: State) -> None:
    turn, call_id = await tool_turns.wait_for(CLIENT_TOOL)
    gate = Gate()

    async def hold(_number: int) -> None:
        await gate()

    tool_turns.chat_model.while_thinking = hold
    waiter = Waiter(tool_turns.client, turn["id"])
    async with anyio.create_task_group() as group:
        group.start_soon(waiter.run)
        await until_watched(state)
        assert waiter.answer == {}
        await tool_turns.resolve(call_id, output=7)

    assert waiter.answer["status"] == "in_progress"
    gate.opened.set()
    ended = await tool_turns.turn(turn["id"], wait_seconds=60)
    assert ended["status"] == "completed"


async def test_it_is_told_that_the_turn_waits_for_another_action(
    tool_turns: ToolTurns, state: State
) -> None:
    turn, call_id = await tool_turns.wait_for(CLIENT_TOOL)
    tool_turns.chat_model.script = [(("act", '{"n": 2}'),)]
    waiter = Waiter(tool_turns.client, turn["id"])
    async with anyio.create_task_group() as group:
        group.start_soon(waiter.run)
        await until_watched(state)
        await tool_turns.resolve(call_id, output=7)

    ended = await tool_turns.turn(turn["id"])
    if waiter.answer["status"] == "in_progress":  # it was read in between
        await until_waiting_again(tool_turns, turn["id"])
        ended = await tool_turns.turn(turn["id"])
    assert ended["status"] == "requires_action"
    assert ended["required_actions"][0]["call_id"] != call_id


async def until_waiting_again(tool_turns: ToolTurns, turn_id: str) -> None:
    async def waits() -> bool:
        return (await tool_turns.turn(turn_id))["status"] == "requires_action"

    await until(waits)


async def test_it_is_told_of_a_cancelled_turn(tool_turns: ToolTurns, state: State) -> None:
    turn, _ = await tool_turns.wait_for(APPROVED_TOOL)
    waiter = Waiter(tool_turns.client, turn["id"])
    async with anyio.create_task_group() as group:
        group.start_soon(waiter.run)
        await until_watched(state)
        await tool_turns.client.post(f"/turns/{turn['id']}/cancel")

    assert waiter.answer["status"] == "cancelled"


async def test_one_of_two_actions_changes_nothing(tool_turns: ToolTurns) -> None:
    calls = (("act", '{"n": 1}'), ("act", '{"n": 2}'))
    turn, call_id = await tool_turns.wait_for(CLIENT_TOOL, *calls)
    await tool_turns.resolve(call_id, output=1)

    shown = await tool_turns.turn(turn["id"], wait_seconds=0.3)

    assert shown["status"] == "requires_action"
    assert len(shown["required_actions"]) == 1


async def test_a_server_that_stops_answers_at_once(tool_turns: ToolTurns, state: State) -> None:
    turn, _ = await tool_turns.wait_for(APPROVED_TOOL)
    waiter = Waiter(tool_turns.client, turn["id"])
    async with anyio.create_task_group() as group:
        group.start_soon(waiter.run)
        await until_watched(state)
        state["turns"].drain()

    assert waiter.answer["status"] == "requires_action"


@pytest.fixture
async def other_client(
    settings: Settings, second_server: StartServer, state: State
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a second server on the same database."""
    assert not state["turns"].is_draining  # the first is there already
    async with second_server() as other, client_of(settings, other) as client:
        yield client


@pytest.mark.postgres
@pytest.mark.parametrize("settings", ["postgres"], indirect=True)  # SQLite has one server
@pytest.mark.parametrize("waits_on", ["first", "other"])
async def test_servers_tell_each_other(
    tool_turns: ToolTurns, other_client: httpx2.AsyncClient, waits_on: str
) -> None:
    turn, call_id = await tool_turns.wait_for(CLIENT_TOOL)
    clients = tool_turns.client, other_client
    waiting, acting = clients if waits_on == "first" else clients[::-1]
    waiter = Waiter(waiting, turn["id"])
    async with anyio.create_task_group() as group:
        group.start_soon(waiter.run)
        taken = await acting.post(f"/tool-calls/{call_id}/resolution", json={"output": 7})
        assert taken.status_code == 200, taken.text

    assert waiter.answer["status"] in {"in_progress", "completed"}
