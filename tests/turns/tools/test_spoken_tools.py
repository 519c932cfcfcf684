"""Spoken answers with tools: what is said while a call runs, interruptions, and turns that wait."""

from dataclasses import replace
from typing import Any

import anyio
import httpx2
import pytest

from app.core.database import Database
from app.services.tool_ports import Effect, ToolPolicy
from tests.support.fake_providers import FakeSpeaker
from tests.support.scripted_tools import agent_tools, pinned
from tests.support.tool_turns import CLIENT_TOOL, ToolTurns
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

FILLER = "One moment, please."


class Listener:
    """A request whose answer is spoken."""

    def __init__(self, tool_turns: ToolTurns) -> None:
        self._tool_turns = tool_turns
        self.response: httpx2.Response | None = None

    async def run(self) -> None:
        body = {"session_id": self._tool_turns.session_id, "content": "Go", "output": "voice"}
        self.response = await self._tool_turns.client.post("/messages/text", json=body)

    async def turn(self) -> dict[str, Any]:
        assert self.response is not None
        return await self._tool_turns.turn(self.response.headers["x-turn-id"])


@pytest.fixture
def gate(tool_turns: ToolTurns) -> Gate:
    """Holds every call back."""
    gate = Gate()

    async def hold(_call: object) -> None:
        await gate()

    tool_turns.runner.while_running = hold
    return gate


@pytest.mark.parametrize("filler", [None, FILLER])
async def test_words_before_a_call_are_said_while_it_runs(
    tool_turns: ToolTurns, speaker: FakeSpeaker, gate: Gate, filler: str | None
) -> None:
    policy = ToolPolicy(spoken_filler=filler)
    await tool_turns.give(agent_tools(pinned("act"), policy=policy))
    tool_turns.chat_model.script = [("Let me see.", ("act", "{}")), ("It is seven.",)]
    listener = Listener(tool_turns)
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run)
        await gate.arrived.wait()
        await until(lambda: speaker.said)
        gate.opened.set()

    assert [text.strip() for text, _ in speaker.said] == ["Let me see.", "It is seven."]
    assert (await listener.turn())["message"]["content"] == "Let me see.\n\nIt is seven."


async def test_filler_is_said_where_a_call_takes_long_in_silence(
    tool_turns: ToolTurns, speaker: FakeSpeaker, gate: Gate
) -> None:
    policy = ToolPolicy(spoken_filler=FILLER)
    await tool_turns.give(agent_tools(pinned("act"), policy=policy))
    tool_turns.chat_model.script = [
        (("act", '{"n":1}'),), (("act", '{"n":2}'),), ("It is seven.",),
    ]  # fmt: skip
    listener = Listener(tool_turns)
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run)
        await gate.arrived.wait()
        await until(lambda: speaker.said)
        gate.opened.set()

    assert [text.strip() for text, _ in speaker.said] == [FILLER, "It is seven."]
    message = (await listener.turn())["message"]
    assert message["content"] == f"{FILLER}\n\nIt is seven."
    assert [part["type"] for part in message["parts"]] == ["text", "tool_call", "tool_call", "text"]
    *_, call, result, again, other, question = await prompt_of_next(tool_turns)
    assert (call, result) == (FILLER, "result of act")
    assert (again, other, question) == ("result of act", "It is seven.", "More")


async def prompt_of_next(tool_turns: ToolTurns) -> list[str]:
    """Return what the model is shown of the session with the next message, without empty lines."""
    assert (await tool_turns.send("More")).status_code == 200
    shown = tool_turns.chat_model.requests[-1].messages
    return [line.content for line in shown if line.content]


async def test_quick_calls_and_written_answers_have_no_filler(
    tool_turns: ToolTurns, speaker: FakeSpeaker
) -> None:
    policy = ToolPolicy(spoken_filler=FILLER)
    await tool_turns.give(agent_tools(pinned("act"), CLIENT, policy=policy))
    tool_turns.chat_model.script = [(("act", "{}"),), ("It is seven.",)]
    written = (await tool_turns.send()).json()
    assert written["content"] == "It is seven."
    tool_turns.chat_model.script = [(("ask", "{}"),)]  # waits, and is no call that runs
    listener = Listener(tool_turns)
    await listener.run()

    assert listener.response is not None
    assert listener.response.status_code == 202
    assert speaker.said == []


CLIENT = replace(CLIENT_TOOL, definition=replace(CLIENT_TOOL.definition, name="ask"))


@pytest.mark.parametrize("effect", list(Effect))
async def test_barge_in_ends_the_running_call(
    tool_turns: ToolTurns,
    speaker: FakeSpeaker,
    gate: Gate,
    effect: Effect,
) -> None:
    await tool_turns.give(agent_tools(pinned("act", effect)))
    tool_turns.chat_model.script = [("Let me see.", ("act", "{}"))]
    listener = Listener(tool_turns)
    client, query = tool_turns.client, {"session_id": tool_turns.session_id}
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run)
        await gate.arrived.wait()
        await until(lambda: speaker.said)
        [running] = (await client.get("/turns", params=query)).json()
        await client.post(f"/turns/{running['id']}/cancel", json={"played_ms": 0})

    [ended] = (await client.get("/turns", params=query)).json()
    turn = await tool_turns.turn(ended["id"])
    assert turn["status"] == "cancelled"
    expected = "unknown" if effect is Effect.ONCE else "cancelled"
    assert [part.get("status") for part in turn["message"]["parts"]] == [None, expected]
    assert tool_turns.runner.ended == []


async def test_sound_of_a_turn_that_waits_ends_after_what_was_said(
    tool_turns: ToolTurns, speaker: FakeSpeaker, database: Database
) -> None:
    sayings = Gate()
    speaker.while_speaking = sayings
    await tool_turns.give(agent_tools(CLIENT_TOOL))
    tool_turns.chat_model.script = [("I need you.", ("act", "{}")), ("Thanks.",)]
    listener = Listener(tool_turns)
    async with anyio.create_task_group() as group:
        group.start_soon(listener.run)
        await sayings.arrived.wait()
        sayings.opened.set()

    response = listener.response
    assert response is not None
    assert (response.status_code, response.headers["content-type"]) == (200, "audio/mpeg")
    assert response.headers["x-turn-status"] == "requires_action"
    turn = await listener.turn()
    assert turn["status"] == "requires_action"
    assert [text.strip() for text, _ in speaker.said] == ["I need you."]
    [action] = turn["required_actions"]
    await tool_turns.resolve(action["call_id"], output=1)
    await wait_until_settled(database)
    sound = await tool_turns.client.get(f"/turns/{turn['id']}/audio")
    assert sound.status_code == 200
    assert "x-turn-status" not in sound.headers
