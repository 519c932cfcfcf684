"""An agent's own tools on a live line: called while it speaks, and waiting for an approval."""

import pytest

from app.core.config import Settings
from app.state import State
from tests.live.conftest import ask, line_of, send_message
from tests.support.fake_providers import FakeSpeaker
from tests.support.scripted_tools import agent_tools, pinned
from tests.support.tool_turns import APPROVED_TOOL, ToolTurns
from tests.support.turns import Gate
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def test_words_before_a_call_are_heard_while_it_runs_and_the_answer_behind_it(
    tool_turns: ToolTurns, settings: Settings, state: State, speaker: FakeSpeaker
) -> None:
    gate = Gate()

    async def hold(_call: object) -> None:
        await gate()

    tool_turns.runner.while_running = hold
    await tool_turns.give(agent_tools(pinned("act")))
    tool_turns.chat_model.script = [("Let me see.", ("act", "{}")), ("It is seven.",)]
    async with line_of(settings, state)(f"session_id={tool_turns.session_id}") as line:
        await send_message(line, "What time is it?")
        await line.send("response.create")
        await gate.arrived.wait()
        await line.until("response.output_audio.delta")
        gate.opened.set()
        done = (await line.until("response.done"))["response"]

    assert done["status"] == "completed"
    (item,) = done["output"]  # the agent's calls are its own, and not told to the client
    assert item["content"][0]["transcript"].split() == ["Let", "me", "see.", "It", "is", "seven."]
    assert [text for text, _ in speaker.said] == ["Let me see.", "It is seven."]
    assert len(tool_turns.runner.calls) == 1


async def test_call_that_waits_for_approval_ends_the_response_and_its_answer_is_told_later(
    tool_turns: ToolTurns, settings: Settings, state: State
) -> None:
    await tool_turns.give(agent_tools(APPROVED_TOOL))
    tool_turns.chat_model.script = [("I will do that.", ("act", "{}")), ("It is done.",)]
    open_line = line_of(settings, state)
    async with open_line(f"session_id={tool_turns.session_id}") as line:
        waiting = await ask(line, "Act.")
        question = line.events[1]["item"]["id"]
        turn_id = waiting["id"].removeprefix("resp_")
        turn = await tool_turns.turn(turn_id)
        (action,) = turn["required_actions"]
        resolved = await tool_turns.resolve(action["call_id"], decision="approve")

        async def is_completed() -> bool:
            return (await tool_turns.turn(turn_id))["status"] == "completed"

        await until(is_completed)
    query = f"session_id={tool_turns.session_id}&after={question}"
    async with open_line(query) as line:
        told = (await line.until("conversation.item.added"))["item"]
        again = await ask(line, "Thank you.")

    assert waiting["status"] == "failed"
    assert waiting["status_details"]["error"]["code"] == "action_needed"
    assert resolved.status_code == 200, resolved.text
    assert told["content"][0]["transcript"].split() == [
        "I",
        "will",
        "do",
        "that.",
        "It",
        "is",
        "done.",
    ]
    assert again["status"] == "completed"
