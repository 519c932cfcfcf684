"""Turns with tools beside what else a turn is: retries, budgets, voice, recovery, schemas."""

from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select, update

from app.core.database import Database
from app.core.security import ADMIN
from app.models import Budget, CallStatus, Message, ToolCall, Turn, TurnStatus, TurnStep
from app.services.ports import ProviderUnavailable
from app.services.tool_ports import Approval, Effect, OnUnknown, ToolKind, ToolPolicy
from app.services.turns.storage import leases
from app.state import State
from tests.support.fake_providers import FakeSpeaker
from tests.support.planted_secrets import ADMIN_KEY
from tests.support.scripted_tools import ScriptedChatModel, ScriptedRunner, agent_tools, pinned
from tests.support.sse import parse
from tests.support.tool_turns import GiveTools, ToolTurns, send
from tests.support.turns import Gate, abandon, wait_until_settled

pytestmark = pytest.mark.anyio


async def stored_calls(database: Database) -> list[ToolCall]:
    async with database.reading() as db:
        query = select(ToolCall).order_by(ToolCall.step, ToolCall.index)
        return list((await db.scalars(query)).all())


async def only_turn(database: Database) -> Turn:
    async with database.reading() as db:
        return (await db.scalars(select(Turn))).one()


@pytest.mark.parametrize(
    ("effect", "runs_again"),
    [(Effect.READ, True), (Effect.IDEMPOTENT, False), (Effect.ONCE, False)],
)
async def test_failed_turn_runs_anew_only_where_nothing_was_done(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    effect: Effect,
    runs_again: bool,
) -> None:
    async def fail_from_the_second_on(number: int) -> None:
        if number >= 2:
            raise ProviderUnavailable("The provider is away.")

    await give_tools(agent_tools(pinned("act", effect)))
    chat_model.script = [("One.", ("act", "{}"))]
    chat_model.while_thinking = fail_from_the_second_on
    first = await send(client, session_id, **{"idempotency-key": "k"})
    assert first.status_code == 503
    assert first.headers.get("retry-after") == ("1" if runs_again else None)
    assert first.headers.get("x-should-retry") == (None if runs_again else "false")
    chat_model.while_thinking = None
    chat_model.script = [("Two.", ("act", "{}"))]

    again = await send(client, session_id, **{"idempotency-key": "k"})

    turn = await only_turn(database)
    if runs_again:
        assert again.json()["content"] == "Two.\n\nDone."
        assert (turn.status, turn.attempt, turn.step_count) == (TurnStatus.COMPLETED, 2, 1)
        assert len(await stored_calls(database)) == 1
    else:
        assert again.json()["code"] == "provider-unavailable"
        assert "retry-after" not in again.headers
        assert (turn.status, turn.attempt) == (TurnStatus.FAILED, 1)
    assert len(runner.calls) == (2 if runs_again else 1)


@pytest.mark.parametrize("on_unknown", list(OnUnknown))
@pytest.mark.parametrize("effect", list(Effect))
async def test_turn_that_is_taken_over_in_the_middle_of_a_call(
    state: State,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    effect: Effect,
    on_unknown: OnUnknown,
) -> None:
    gate = Gate()

    async def hold(_call: object) -> None:
        await gate()

    await give_tools(agent_tools(pinned("act", effect), policy=ToolPolicy(on_unknown=on_unknown)))
    runner.while_running = hold
    chat_model.script = [("One.", ("act", "{}"))]
    live = await state["turns"].start(ADMIN, UUID(session_id), "Go")
    await gate.arrived.wait()
    await abandon(database, live.record.id)
    runner.while_running = None
    if effect is Effect.READ:  # is not stored before it has a result, so the model is asked again
        chat_model.script = [("One.", ("act", "{}"))]

    [(record, recoveries)] = await database.run(
        leases.recover_expired, UUID(int=2), all_others=False
    )
    await state["turns"].recover(record, recoveries)
    await wait_until_settled(database)

    turn = await only_turn(database)
    [call] = await stored_calls(database)
    if effect is Effect.ONCE:
        assert len(runner.calls) == 1, "it was run twice"
        assert call.status is CallStatus.UNKNOWN
        if on_unknown is OnUnknown.FAIL:
            assert (turn.status, turn.error_code) == (TurnStatus.FAILED, "unknown-tool-outcome")
            return
    else:
        assert len(runner.calls) == 2
        assert call.status is CallStatus.COMPLETED
        same_key = runner.calls[0].id == runner.calls[1].id
        assert same_key is (effect is Effect.IDEMPOTENT)
    assert (turn.status, turn.attempt) == (TurnStatus.COMPLETED, 2)
    assert turn.prompt_tokens == 20, "each answer of the model is billed once"


async def test_result_that_is_stored_is_not_asked_for_again(
    state: State,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    gate = Gate()

    async def hold_the_second(number: int) -> None:
        if number >= 2:
            await gate()

    await give_tools(agent_tools(pinned("act", Effect.ONCE, price_usd=0.25)))
    chat_model.script = [("One.", ("act", "{}")), ("Lost.",)]
    chat_model.while_thinking = hold_the_second
    live = await state["turns"].start(ADMIN, UUID(session_id), "Go")
    await gate.arrived.wait()
    await abandon(database, live.record.id)
    chat_model.while_thinking = None

    [(record, recoveries)] = await database.run(
        leases.recover_expired, UUID(int=2), all_others=False
    )
    await state["turns"].recover(record, recoveries)
    await wait_until_settled(database)

    turn = await only_turn(database)
    assert turn.status is TurnStatus.COMPLETED
    assert len(runner.calls) == 1
    assert chat_model.requests[2].messages[-1].content == "result of act"
    assert turn.cost_nanos == 250_000_000, "what the lost attempt's call cost is on the receipt"


async def test_budget_pays_for_every_step_and_ends_a_turn_that_it_cannot_pay(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    agent_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    await give_tools(agent_tools(pinned("act", Effect.ONCE)))
    limits = {"context_tokens": 2000, "max_output_tokens": 100}
    await client.patch(f"/agents/{agent_id}", json=limits)
    made = await client.post(
        "/keys",
        json={"name": "k", "scopes": ["turns:write", "turns:read"], "tokens_per_day": 500},
    )
    key = {"authorization": f"Bearer {made.json()['key']}"}
    chat_model.script = [("One.", ("act", '{"text": "' + "x" * 200 + '"}'))]
    paid = await send(client, session_id, **key)
    assert paid.status_code == 200, paid.text
    assert paid.json()["usage"]["prompt_tokens"] == 20

    async with database.reading() as db:
        budget = (await db.scalars(select(Budget).where(Budget.bucket == made.json()["id"]))).one()
    assert (budget.tokens, budget.live_turns) == (30, 0)

    chat_model.script = [("One.", ("act", '{"text": "' + "x" * 2000 + '"}'))]
    refused = await send(client, session_id, "More", **key)
    assert (refused.status_code, refused.json()["code"]) == (429, "budget-exhausted")
    assert len(runner.calls) == 2
    async with database.reading() as db:
        turn = (await db.scalars(select(Turn).order_by(Turn.user_seq.desc()).limit(1))).one()
        budget = (await db.scalars(select(Budget).where(Budget.bucket == made.json()["id"]))).one()
        steps = (await db.scalars(select(TurnStep).where(TurnStep.turn_id == turn.id))).all()
    assert (turn.status, turn.prompt_tokens) == (TurnStatus.FAILED, 10)
    assert len(steps) == 1, "the steps stay"
    assert (budget.tokens, budget.live_turns) == (45, 0)


async def test_waiting_turn_holds_nothing_of_a_budget(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)))
    made = await client.post(
        "/keys",
        json={
            "name": "k",
            "scopes": ["turns:write", "turns:read"],
            "tokens_per_day": 100_000,
            "concurrent_turns": 1,
        },
    )
    key = {"authorization": f"Bearer {made.json()['key']}"}
    chat_model.script = [(("act", "{}"),)]
    waiting = (await send(client, session_id, **key)).json()

    async def budget() -> tuple[int, int]:
        async with database.reading() as db:
            row = (await db.scalars(select(Budget).where(Budget.bucket == made.json()["id"]))).one()
            return row.tokens, row.live_turns

    assert await budget() == (15, 0)
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    await client.post(url, json={"output": 1}, headers=key)
    await wait_until_settled(database)
    assert await budget() == (30, 0)
    turn = (await client.get(f"/turns/{waiting['id']}")).json()
    assert turn["usage"]["prompt_tokens"] == 20


async def test_price_of_calls_is_on_the_bill(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, price_usd=0.25)))
    chat_model.script = [(("act", '{"n":1}'), ("act", '{"n":2}'))]
    reply = (await send(client, session_id)).json()
    assert reply["usage"]["cost_usd"] == 0.5


async def test_output_that_breaks_its_schema_is_refused_and_can_be_sent_again(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    agent_id: str,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    schema = {"type": "object", "required": ["ok"], "properties": {"ok": {"type": "boolean"}}}
    body = {"name": "act", "description": "A.", "kind": "client", "output_schema": schema}
    tool = (await client.post("/tools", json=body)).json()
    tools: dict[str, Any] = {"tools": [{"tool_id": tool["id"], "approval": "never"}]}
    await client.patch(f"/agents/{agent_id}", json=tools)
    chat_model.script = [(("act", "{}"),)]
    waiting = (await send(client, session_id)).json()
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"

    for output in ({}, {"ok": "secret-value"}, 5, None):
        refused = await client.post(url, json={"output": output})
        assert (refused.status_code, refused.json()["code"]) == (422, "tool-output-invalid")
        assert "secret-value" not in refused.text
    assert (await client.post(url, json={"output": {"ok": True}})).status_code == 200
    await wait_until_settled(database)
    assert chat_model.requests[1].messages[-1].content == '{"ok":true}'


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"decision": "maybe"},
        {"decision": "approve", "output": 1},
        {"output": 1, "error": "x"},
        {"decision": "approve", "reason": "r"},
        {"error": ""},
        {"decision": "approve", "more": 1},
        [],
    ],
)
async def test_action_is_exactly_one(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    body: Any,  # noqa: ANN401  # JSON
) -> None:
    await give_tools(agent_tools(pinned("act", Effect.ONCE, approval=Approval.ALWAYS)))
    chat_model.script = [(("act", "{}"),)]
    waiting = (await send(client, session_id)).json()
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    assert (await client.post(url, json=body)).status_code == 422
    assert runner.calls == []
    turn = (await client.get(f"/turns/{waiting['id']}")).json()
    assert turn["status"] == "requires_action"


async def test_approval_of_the_operator_needs_its_scope(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, approval=Approval.ALWAYS)))
    chat_model.script = [(("act", "{}"),)]
    waiting = (await send(client, session_id)).json()
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    token = (await client.post(f"/sessions/{session_id}/tokens", json={})).json()["token"]
    refused = await client.post(
        url, json={"decision": "approve"}, headers={"authorization": f"Bearer {token}"}
    )
    assert (refused.status_code, "approvals:write" in refused.text) == (403, True)
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert (await client.post(url, json={"decision": "deny"}, headers=admin)).status_code == 200
    entries = (await client.get("/audit")).json()
    resolved = [entry for entry in entries if entry["action"] == "tool-call.resolved"]
    assert [entry["details"]["decision"] for entry in resolved] == ["deny"]
    assert len(resolved[0]["details"]["arguments_sha256"]) == 64


async def test_spoken_answer_goes_on_over_steps(
    client: httpx2.AsyncClient,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    speaker: FakeSpeaker,
    speech: bytes,
) -> None:
    await give_tools(agent_tools(pinned("act")))
    chat_model.script = [("Let me see.", ("act", "{}")), ("It is seven.",)]
    response = await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("q.wav", speech)},
        headers={"accept": "text/event-stream"},
    )
    events = parse(response.text.split("\n"))
    clips = [event.data["text"].strip() for event in events if event.type == "audio.clip"]
    assert clips == ["Let me see.", "It is seven."]
    assert len(runner.calls) == 1
    assert len(speaker.said) == 2


async def test_spoken_turn_waits_and_goes_on(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    speech: bytes,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)))
    chat_model.script = [(("act", "{}"),), ("It is seven.",)]
    response = await client.post(
        "/messages/voice",
        data={"session_id": session_id},
        files={"audio": ("q.wav", speech)},
    )
    assert response.status_code == 202
    waiting = response.json()
    assert waiting["status"] == "requires_action"
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    await client.post(url, json={"output": 7})
    await wait_until_settled(database)
    turn = (await client.get(f"/turns/{waiting['id']}")).json()
    assert (turn["status"], turn["message"]["content"]) == ("completed", "It is seven.")
    sound = await client.get(f"/turns/{waiting['id']}/audio")
    assert (sound.status_code, sound.headers["content-type"]) == (200, "audio/mpeg")


async def test_interrupting_message_ends_a_waiting_turn(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act", Effect.ONCE, kind=ToolKind.CLIENT)))
    chat_model.script = [(("act", "{}"),), ("Instead.",)]
    waiting = (await send(client, session_id)).json()
    body = {"session_id": session_id, "content": "Stop that.", "on_busy": "interrupt"}
    reply = (await client.post("/messages/text", json=body)).json()
    assert reply["content"] == "Instead."
    turn = (await client.get(f"/turns/{waiting['id']}")).json()
    assert turn["status"] == "cancelled"
    assert [call.status for call in await stored_calls(database)] == [CallStatus.CANCELLED]


async def test_deleted_session_takes_its_calls_with_it(
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
    assert (await client.delete(f"/sessions/{session_id}")).status_code == 204
    assert await stored_calls(database) == []
    url = f"/tool-calls/{waiting['required_actions'][0]['call_id']}/resolution"
    assert (await client.post(url, json={"output": 1})).status_code == 404


async def test_interrupted_speech_cuts_the_last_text_and_no_call(
    client: httpx2.AsyncClient,
    database: Database,
    session_id: str,
    give_tools: GiveTools,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
) -> None:
    del runner  # is in place
    await give_tools(agent_tools(pinned("act")))
    chat_model.script = [("One.", ("act", "{}")), ("Two. Three.",)]
    await send(client, session_id)
    for heard, expected in (("One.\n\nTwo.", ["Two."]), ("On", []), ("", [])):
        async with database.transaction() as db:
            await db.execute(update(Message).where(Message.seq == 2).values(heard_content=heard))
        fork = (await client.post(f"/sessions/{session_id}/fork", json={"up_to_seq": 2})).json()
        await send(client, fork["id"], "More")
        lines = [line.content for line in chat_model.requests[-1].messages]
        assert lines[1:] == ["Go", "One.", "result of act", *expected, "More"]


async def test_turn_whose_server_stops_twice_in_a_call_tells_that_it_may_have_been_done(
    tool_turns: ToolTurns, state: State, database: Database
) -> None:
    gate = Gate()

    async def hold(_call: object) -> None:
        await gate()

    await tool_turns.give(agent_tools(pinned("charge", Effect.ONCE)))
    tool_turns.runner.while_running = hold
    tool_turns.chat_model.script = [(("charge", "{}"),)]
    live = await state["turns"].start(ADMIN, UUID(tool_turns.session_id), "Go")
    await gate.arrived.wait()
    for stopped in (2, 3):  # the second stops before it has stored anything
        await abandon(database, live.record.id)
        [(record, recoveries)] = await database.run(
            leases.recover_expired, UUID(int=stopped), all_others=False
        )
    await state["turns"].recover(record, recoveries)
    await wait_until_settled(database)

    turn = await tool_turns.turn(str(live.record.id))
    assert recoveries == 2
    assert (turn["status"], turn["error"]["code"]) == ("failed", "unknown-tool-outcome")
    assert [call["status"] for call in turn["tool_calls"]] == ["unknown"]
    events = parse((await tool_turns.client.get(f"/turns/{turn['id']}/events")).text.split("\n"))
    assert events[-1].data["retryable"] is False
    assert len(tool_turns.runner.calls) == 1


async def test_failure_behind_an_effect_is_not_called_retryable(tool_turns: ToolTurns) -> None:
    async def fail_from_the_second_on(number: int) -> None:
        if number >= 2:
            raise ProviderUnavailable("The provider is away.")

    tool_turns.chat_model.while_thinking = fail_from_the_second_on
    await tool_turns.give(agent_tools(pinned("charge", Effect.ONCE)))
    tool_turns.chat_model.script = [(("charge", "{}"),)]

    stream = await tool_turns.send(accept="text/event-stream")

    failed = parse(stream.text.split("\n"))[-1].data
    assert failed["error"]["code"] == "provider-unavailable"
    assert failed["retryable"] is False
