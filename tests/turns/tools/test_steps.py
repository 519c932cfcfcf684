"""Turns with several steps: the model calls tools, is shown the results, and answers."""

from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select, update

from app.core.database import Database
from app.core.security import ADMIN
from app.models import CallStatus, Message, ToolCall, Turn, TurnStatus, TurnStep, utc_now
from app.services.ports import ReasoningDelta
from app.services.prompt_lines import PromptAnswer, PromptResult
from app.services.tool_ports import (
    Approval,
    ApprovalBy,
    Effect,
    OnUnknown,
    ToolKind,
    ToolOutcome,
    ToolPolicy,
    ToolResult,
)
from app.state import State
from tests.support.scripted_tools import (
    ScriptedChatModel,
    ScriptedRunner,
    agent_tools,
    pinned,
)
from tests.support.sse import parse, text_of
from tests.support.tool_turns import GiveTools, send
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


async def newest_turn(database: Database) -> tuple[Turn, Message]:
    async with database.reading() as db:
        turn = (await db.scalars(select(Turn).order_by(Turn.user_seq.desc()).limit(1))).one()
        return turn, await db.get_one(Message, (turn.workspace_id, turn.message_id))


async def calls_of(database: Database) -> list[ToolCall]:
    async with database.reading() as db:
        return list((await db.scalars(select(ToolCall).order_by(ToolCall.id))).all())


async def test_read_tool_is_run_and_its_result_shown_to_the_model(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("look_up"), pinned("add")))
    chat_model.script = [("Let me see.", ("look_up", '{"n":1}')), ("It is 7.",)]

    reply = (await send(client, session_id)).json()

    assert reply["content"] == "Let me see.\n\nIt is 7."
    assert reply["usage"]["prompt_tokens"] == 20
    assert reply["usage"]["completion_tokens"] == 10
    assert [tool.name for tool in chat_model.requests[0].tools] == ["add", "look_up"]
    assert [call.arguments for call in runner.calls] == ['{"n":1}']
    *_, question, answer, result = chat_model.requests[1].messages
    assert question.content == "Go"
    assert isinstance(answer, PromptAnswer)
    assert isinstance(result, PromptResult)
    assert (answer.content, answer.calls[0].name) == ("Let me see.", "look_up")
    assert answer.calls[0].arguments == '{"n":1}'
    assert result.call_id == answer.calls[0].id
    assert result.content == "result of look_up"

    turn, message = await newest_turn(database)
    assert (turn.status, turn.step_count) == (TurnStatus.COMPLETED, 1)
    assert message.parts == [
        {"type": "text", "text": "Let me see."},
        {
            "type": "tool_call",
            "call_id": "call-1-0",
            "name": "look_up",
            "arguments": '{"n":1}',
            "status": "completed",
            "result": "result of look_up",
        },
        {"type": "text", "text": "It is 7."},
    ]
    shown = (await client.get(f"/turns/{turn.id}")).json()
    assert shown["message"]["parts"] == message.parts
    assert [step["content"] for step in shown["steps"]] == ["Let me see."]
    assert [call["status"] for call in shown["tool_calls"]] == ["completed"]
    assert shown["required_actions"] == []


async def test_later_turns_are_shown_calls_and_results_byte_for_byte(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("look_up")))
    arguments = '{ "b" : 1,"a":"\\u00e9" }'
    runner.answers["look_up"] = ToolResult(ToolOutcome.COMPLETED, '{"z": 1,  "y": [2]}')
    chat_model.script = [(("look_up", arguments),), ("Found.",), ("Again.",)]
    await send(client, session_id)
    in_turn = chat_model.requests[1].messages[-2:]
    await send(client, session_id, "More")

    later = chat_model.requests[2].messages
    assert list(later[-4:-2]) == list(in_turn)
    assert [line.content for line in later[-2:]] == ["Found.", "More"]


async def test_events_tell_steps_and_calls_and_join_to_the_content(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("look_up"), pinned("fails")))
    runner.answers["fails"] = ToolResult(
        ToolOutcome.FAILED, "The server said no.", error_code="tool-failed", error_detail="500"
    )
    chat_model.script = [
        (ReasoningDelta("Hm."), "One.", ("look_up", "{}"), ("fails", "{}")),
        ("Two.",),
    ]
    streamed = parse((await send(client, session_id, accept="text/event-stream")).text.split("\n"))

    kinds = [event.type for event in streamed if event.type != "output_text.delta"]
    assert kinds.count("tool_call.created") == kinds.count("tool_call.started") == 2
    assert kinds.index("reasoning.delta") < kinds.index("tool_call.created")
    assert "step.started" in kinds
    assert text_of(streamed) == "One.\n\nTwo." == streamed[-1].data["message"]["content"]
    assert streamed[-1].data["steps"] == 2
    failed = next(event for event in streamed if event.type == "tool_call.failed")
    assert failed.data["error"] == {"code": "tool-failed", "detail": "500"}
    done = next(event for event in streamed if event.type == "tool_call.completed")
    assert done.data["preview"] == "result of look_up"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("nothing", "{}"), "There is no tool"),
        (("look_up", "{bad"), "not JSON"),
        (("look_up", "[1]"), "not a JSON object"),
        (("look_up", '{"x": 1}'), "`x` is not allowed."),
    ],
)
async def test_wrong_calls_go_back_to_the_model_unrun(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    call: tuple[str, str],
    said: str,
) -> None:
    await give_tools(agent_tools(pinned("look_up", Effect.ONCE, approval=Approval.ALWAYS)))
    runner.problems['{"x": 1}'] = "`x` is not allowed."
    chat_model.script = [(call,), ("Sorry.",)]

    reply = (await send(client, session_id)).json()

    assert reply["content"] == "Sorry."
    assert runner.calls == []
    assert said in chat_model.requests[1].messages[-1].content
    assert [each.status for each in await calls_of(database)] == [CallStatus.FAILED]


async def test_third_equal_failure_is_refused(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("look_up")))
    runner.answers["look_up"] = ToolResult(ToolOutcome.FAILED, "No.", error_code="tool-failed")
    chat_model.script = [(("look_up", "{}"),)] * 3

    await send(client, session_id)

    assert len(runner.calls) == 2
    assert "failed twice" in chat_model.requests[3].messages[-1].content


@pytest.mark.parametrize(
    ("policy", "reason"),
    [(ToolPolicy(max_steps=2), "max_steps"), (ToolPolicy(max_calls=2), "max_calls")],
)
async def test_limits_let_the_model_answer_without_tools(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    policy: ToolPolicy,
    reason: str,
) -> None:
    await give_tools(agent_tools(pinned("look_up"), policy=policy))
    chat_model.script = [(("look_up", f'{{"n":{n}}}'),) for n in range(2)] + [("Enough.",)]

    reply = (await send(client, session_id)).json()

    assert reply["content"] == "Enough."
    assert [request.may_call_tools for request in chat_model.requests] == [True, True, False]
    assert chat_model.requests[2].tools
    assert len(runner.calls) == 2
    turn, _ = await newest_turn(database)
    assert turn.stop_reason == reason
    assert (await client.get(f"/turns/{turn.id}")).json()["stop_reason"] == reason


async def test_effects_are_written_down_before_they_begin(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    seen: list[list[tuple[str, str]]] = []

    async def look(_call: object) -> None:
        seen.append([(call.name, call.status.value) for call in await calls_of(database)])

    await give_tools(agent_tools(pinned("charge", Effect.ONCE), pinned("put", Effect.IDEMPOTENT)))
    runner.while_running = look
    chat_model.script = [(("charge", '{"n":1}'), ("charge", '{"n":2}'), ("put", "{}")), ("Ok.",)]

    await send(client, session_id)

    first = sorted([("charge", "running"), ("charge", "pending"), ("put", "running")])
    assert sorted(seen[0]) == first
    assert len(seen) == 3
    second = next(i for i, c in enumerate(runner.calls) if c.arguments == '{"n":2}')
    assert ("charge", "completed") in seen[second], "`once` calls run one after the other"
    assert ("charge", "running") in seen[second]


async def test_calls_without_effect_side_by_side(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    most, running = 0, 0
    gate = Gate()

    async def hold(_call: object) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        if running == 2:
            gate.opened.set()
        await gate.opened.wait()
        running -= 1

    await give_tools(agent_tools(pinned("a"), policy=ToolPolicy(max_parallel=2)))
    runner.while_running = hold
    chat_model.script = [tuple(("a", f'{{"n":{n}}}') for n in range(5)), ("Ok.",)]

    await send(client, session_id)

    assert most == 2
    results = [line for line in chat_model.requests[1].messages if isinstance(line, PromptResult)]
    assert [line.call_id for line in results] == [f"call-1-{n}" for n in range(5)]


async def test_approval_waits_without_owner_and_runs_once_when_given(
    client: httpx2.AsyncClient,
    database: Database,
    state: State,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("refund", Effect.ONCE, approval=Approval.ALWAYS)))
    chat_model.script = [("I will refund.", ("refund", '{"order":5}'))]

    waiting = await send(client, session_id)

    assert waiting.status_code == 202
    shown = waiting.json()
    assert shown["status"] == "requires_action"
    [action] = shown["required_actions"]
    assert (action["action"], action["name"], action["by"]) == ("approval", "refund", "operator")
    assert action["arguments"] == '{"order":5}'
    assert runner.calls == []
    turn, message = await newest_turn(database)
    assert (turn.owner_id, turn.lease_expires_at, turn.reserved_day) == (None, None, None)
    assert message.content == "I will refund."
    assert state["turns"].register_sizes()["turns"] == 0

    inbox = (await client.get("/tool-calls?status=awaiting_approval")).json()
    assert [call["id"] for call in inbox] == [action["call_id"]]
    url = f"/tool-calls/{action['call_id']}/resolution"
    assert (await client.post(url, json={"output": 1})).json()["code"] == "action-not-wanted"
    approved = await client.post(url, json={"decision": "approve"})
    assert approved.status_code == 200
    assert approved.json()["resolution"]["decision"] == "approve"
    await wait_until_settled(database)

    assert [call.arguments for call in runner.calls] == ['{"order":5}']
    again = await client.post(url, json={"decision": "approve"})
    other = await client.post(url, json={"decision": "deny"})
    assert again.status_code == 200
    assert (other.status_code, other.json()["code"]) == (409, "action-already-taken")
    assert len(runner.calls) == 1
    done = (await client.get(f"/turns/{turn.id}")).json()
    assert done["status"] == "completed"
    assert done["message"]["content"] == "I will refund.\n\nDone."
    assert done["usage"]["prompt_tokens"] == 20
    replay = parse((await client.get(f"/turns/{turn.id}/events")).text.split("\n"))
    kinds = [event.type for event in replay]
    assert kinds.index("turn.requires_action") < kinds.index("action.resolved")
    assert kinds[-1] == "turn.completed"
    numbers = [event.id or 0 for event in replay]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("action", "status", "said"),
    [
        ({"decision": "deny", "reason": "Too much."}, "denied", "not allowed, and not run. They"),
        ({"output": {"ok": True}}, "completed", '{"ok":true}'),
        ({"output": "as text"}, "completed", "as text"),
        ({"error": "The disk is full."}, "failed", "The disk is full."),
    ],
)
async def test_actions_reach_the_model(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    action: dict[str, Any],
    status: str,
    said: str,
) -> None:
    is_denial = "decision" in action
    tool = (
        pinned("act", Effect.ONCE, approval=Approval.ALWAYS)
        if is_denial
        else pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)
    )
    await give_tools(agent_tools(tool))
    chat_model.script = [(("act", "{}"),)]
    [wanted] = (await send(client, session_id)).json()["required_actions"]
    assert wanted["action"] == ("approval" if is_denial else "output")

    await client.post(f"/tool-calls/{wanted['call_id']}/resolution", json=action)
    await wait_until_settled(database)

    assert runner.calls == []
    assert said in chat_model.requests[1].messages[-1].content
    call = (await client.get(f"/tool-calls/{wanted['call_id']}")).json()
    assert call["status"] == status


async def test_turn_goes_on_after_the_last_of_several_actions(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(
        agent_tools(
            pinned("act", Effect.ONCE, kind=ToolKind.CLIENT), pinned("look_up", Effect.READ)
        )
    )
    chat_model.script = [(("act", '{"n":1}'), ("look_up", "{}"), ("act", '{"n":2}'))]
    waiting = (await send(client, session_id)).json()
    assert [call["status"] for call in waiting["tool_calls"]] == [
        "awaiting_output", "completed", "awaiting_output",
    ]  # fmt: skip
    first, second = waiting["required_actions"]
    await client.post(f"/tool-calls/{first['call_id']}/resolution", json={"output": 1})
    turn = (await client.get(f"/turns/{waiting['id']}")).json()
    assert turn["status"] == "requires_action"
    await client.post(f"/tool-calls/{second['call_id']}/resolution", json={"output": 2})
    await wait_until_settled(database)

    assert [line.content for line in chat_model.requests[1].messages[-3:]] == [
        "1", "result of look_up", "2",
    ]  # fmt: skip
    assert len(runner.calls) == 1, "a stored result is never run again"


async def test_cancelled_waiting_turn_ends_its_calls(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)))
    chat_model.script = [("Wait.", ("act", "{}"))]
    waiting = (await send(client, session_id)).json()

    cancelled = (await client.post(f"/turns/{waiting['id']}/cancel")).json()

    assert cancelled["status"] == "cancelled"
    assert cancelled["message"]["content"] == "Wait."
    assert [call["status"] for call in cancelled["tool_calls"]] == ["cancelled"]
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    assert (await client.post(url, json={"output": 1})).json()["code"] == "action-not-wanted"
    chat_model.script = [("Next.",)]
    assert (await send(client, session_id, "And?")).json()["content"] == "Next."
    shown = chat_model.requests[-1].messages
    assert any(isinstance(line, PromptResult) and "cancelled" in line.content for line in shown)


@pytest.mark.parametrize("effect", list(Effect))
async def test_cancel_in_the_middle_of_a_call(
    database: Database,
    state: State,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    effect: Effect,
) -> None:
    gate = Gate()

    async def hold(_call: object) -> None:
        await gate()

    await give_tools(agent_tools(pinned("act", effect)))
    runner.while_running = hold
    chat_model.script = [(("act", "{}"),)]
    live = await state["turns"].start(ADMIN, UUID(session_id), "Go")
    await gate.arrived.wait()
    await state["turns"].cancel(ADMIN, live.record.id)

    _, message = await newest_turn(database)
    expected = "unknown" if effect is Effect.ONCE else "cancelled"
    assert [part["status"] for part in message.parts or ()] == [expected]
    stored = [call.status.value for call in await calls_of(database)]
    assert stored == ([] if effect is Effect.READ else [expected])
    assert runner.ended == []


@pytest.mark.parametrize("on_unknown", list(OnUnknown))
async def test_unknown_outcome_is_told_and_never_run_again(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    on_unknown: OnUnknown,
) -> None:
    await give_tools(
        agent_tools(pinned("charge", Effect.ONCE), policy=ToolPolicy(on_unknown=on_unknown))
    )
    runner.answers["charge"] = ToolResult(ToolOutcome.UNKNOWN, "broken", error_code="tool-timeout")
    chat_model.script = [(("charge", "{}"),)]

    response = await send(client, session_id, **{"idempotency-key": "k"})

    assert [call.status for call in await calls_of(database)] == [CallStatus.UNKNOWN]
    if on_unknown is OnUnknown.TELL:
        assert response.json()["content"] == "Done."
        assert "not known whether" in chat_model.requests[1].messages[-1].content
    else:
        assert (response.status_code, response.json()["code"]) == (409, "unknown-tool-outcome")
        again = await send(client, session_id, **{"idempotency-key": "k"})
        assert again.json()["code"] == "unknown-tool-outcome"
    assert len(runner.calls) == 1


async def test_expired_action_is_told_to_the_model(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)))
    chat_model.script = [(("act", "{}"),)]
    waiting = (await send(client, session_id)).json()
    async with database.transaction() as db:
        await db.execute(update(ToolCall).values(expires_at=utc_now().replace(year=2020)))

    async def is_completed() -> bool:
        turn, _ = await newest_turn(database)
        return turn.status is TurnStatus.COMPLETED

    await until(is_completed, within_seconds=20)
    assert "in time" in chat_model.requests[1].messages[-1].content
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    assert (await client.post(url, json={"output": 1})).json()["code"] == "action-expired"


async def test_untrusted_results_make_approvals_necessary(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(
        agent_tools(
            pinned("pay", Effect.ONCE, approval=Approval.AFTER_UNTRUSTED),
            pinned("web", is_trusted=False),
        )
    )
    chat_model.script = [(("pay", "{}"),), ("Paid.",)]
    assert (await send(client, session_id)).status_code == 200
    chat_model.script = [(("web", "{}"),), (("pay", "{}"),)]
    assert (await send(client, session_id)).status_code == 202
    assert [call.tool.definition.name for call in runner.calls] == ["pay", "web"]


async def test_stream_ends_with_the_actions_and_can_be_followed_behind_them(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(
        agent_tools(
            pinned("act", Effect.ONCE, approval=Approval.ALWAYS, approval_by=ApprovalBy.USER)
        )
    )
    chat_model.script = [("One.", ("act", "{}"))]
    stream = await send(client, session_id, accept="text/event-stream")
    streamed = parse(stream.text.split("\n"))
    assert streamed[-1].type == "turn.requires_action"
    [wanted] = streamed[-1].data["actions"]
    assert (wanted["action"], wanted["by"]) == ("approval", "user")
    turn, _ = await newest_turn(database)

    url = f"/tool-calls/{wanted['call_id']}/resolution"
    await client.post(url, json={"decision": "approve"})
    rest = await client.get(f"/turns/{turn.id}/events?after={streamed[-1].id}")
    followed = parse(rest.text.split("\n"))
    assert (followed[0].id or 0) > (streamed[-1].id or 0)
    assert followed[0].type == "turn.in_progress"
    assert text_of(followed) == "One.\n\nDone."
    assert followed[-1].type == "turn.completed"
    assert not (await steps_unbilled(database))


async def steps_unbilled(database: Database) -> list[int]:
    async with database.reading() as db:
        rows = await db.scalars(select(TurnStep.number).where(TurnStep.is_billed.is_(False)))
        return list(rows.all())


async def test_reasoning_is_a_part_and_no_content(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    chat_model: ScriptedChatModel,
) -> None:
    chat_model.script = [(ReasoningDelta("Secret."), "Paris.")]
    reply = (await send(client, session_id)).json()
    assert reply["content"] == "Paris."
    _, message = await newest_turn(database)
    assert message.parts == [
        {"type": "reasoning", "text": "Secret."},
        {"type": "text", "text": "Paris."},
    ]
    await send(client, session_id, "More")
    shown = [line.content for line in chat_model.requests[-1].messages]
    assert shown[-2:] == ["Paris.", "More"]
    assert not any("Secret" in content for content in shown)


async def test_calls_need_tools(
    client: httpx2.AsyncClient, session_id: str, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [(("look_up", "{}"),)]
    response = await send(client, session_id)
    assert response.json()["code"] == "tool-calls-unsupported"
