"""Tools of MCP servers in turns: the ledger, questions, progress, and definitions that changed."""

from typing import Any
from uuid import UUID

import anyio
import httpx2
import orjson
import pytest

from app.services.mcp_port import (
    McpError,
    McpFailure,
    McpProgress,
    McpQuestion,
    McpResult,
    OnProgress,
)
from tests.files.made import png as tiny_png
from tests.mcp.conftest import accept, make_server
from tests.support import planted_secrets
from tests.support.fake_mcp import FakeMcp, mcp_tool
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.sse import parse
from tests.support.tool_turns import send
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

FORM = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
QUESTION = McpQuestion("Really?", FORM, None, {"key": "k", "request_state": "s3cret-state"})


async def give(client: httpx2.AsyncClient, agent_id: str, **server: Any) -> dict[str, Any]:
    """Let the agent have all tools of a server, accepted."""
    made = await make_server(client, auto_accept=True, approval="never", **server)
    body = {"tools": [{"mcp_server_id": made["id"]}]}
    assert (await client.patch(f"/agents/{agent_id}", json=body)).status_code == 200
    return made


async def until_turn(client: httpx2.AsyncClient, turn_id: str, status: str) -> None:
    """Wait until a turn that goes on has this status."""

    async def has_status() -> bool:
        return (await client.get(f"/turns/{turn_id}")).json()["status"] == status

    await until(has_status)


async def only_call(client: httpx2.AsyncClient) -> dict[str, Any]:
    [call] = (await client.get("/tool-calls")).json()
    return call


async def test_call_is_made_with_its_id_and_the_model_sees_the_result(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    await give(client, agent_id)
    chat_model.script = [("One.", ("shop__find", '{"q": 1}'))]
    fake_mcp.outcomes = [McpResult(is_error=False, text='{"order":7}', structured={"order": 7})]

    answer = await send(client, session_id)

    assert answer.json()["content"] == "One.\n\nDone."
    [made] = fake_mcp.calls
    call = await only_call(client)
    assert (made.tool, dict(made.arguments)) == ("find", {"q": 1})
    assert made.meta["idempotencyKey"] == call["id"]
    assert (call["kind"], call["effect"], call["status"]) == ("mcp", "once", "completed")
    assert call["result"] == '{"order":7}'
    shown = [line.content for line in chat_model.requests[-1].messages]
    assert '{"order":7}' in shown


async def test_images_of_a_result_are_files_and_shown(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    await give(client, agent_id)
    chat_model.script = [(("shop__find", "{}"),)]
    images = [tiny_png(), b"no image"]
    fake_mcp.outcomes = [McpResult(is_error=False, text="two of them", images=images)]

    await send(client, session_id)

    call = await only_call(client)
    lines = [
        "two of them",
        "[an image: image/png, 3 x 2 pixels]",
        "[an image that cannot be shown]",
    ]
    assert call["result"].split("\n") == lines
    [file] = call["files"]
    assert (await client.get(f"/files/{file['file_id']}/content")).content == tiny_png()
    shown = chat_model.requests[-1].messages[-1]
    assert shown.content.endswith("[an image that this model cannot see]")


@pytest.mark.parametrize(
    ("outcome", "effect", "status", "code"),
    [
        (McpResult(is_error=True, text="no such order"), "once", "failed", "tool-failed"),
        (
            McpError(McpFailure.BROKEN, "It broke.", was_sent=True),
            "once",
            "unknown",
            "tool-unreachable",
        ),
        (
            McpError(McpFailure.BROKEN, "It broke.", was_sent=True),
            "read",
            "failed",
            "tool-unreachable",
        ),
        (McpError(McpFailure.UNREACHABLE, "Gone."), "once", "failed", "tool-unreachable"),
        (
            McpError(McpFailure.TIMEOUT, "Too long.", was_sent=True),
            "once",
            "unknown",
            "tool-timeout",
        ),
        (
            McpError(McpFailure.TOO_LARGE, "Large.", was_sent=True),
            "once",
            "failed",
            "tool-result-too-large",
        ),
        (
            McpError(McpFailure.REFUSED, "It refused.", was_sent=True, answer="no such order"),
            "once",
            "failed",
            "mcp-error",
        ),
    ],
)
async def test_outcomes(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
    outcome: Any,  # noqa: ANN401  # one of the outcomes
    effect: str,
    status: str,
    code: str,
) -> None:
    await give(client, agent_id, effect=effect)
    policy = {"tool_policy": {"on_unknown": "tell"}}
    await client.patch(f"/agents/{agent_id}", json=policy)
    chat_model.script = [("One.", ("shop__pay", "{}"))]
    fake_mcp.outcomes = [outcome]

    answer = await send(client, session_id)

    assert answer.status_code == 200, answer.text
    call = await only_call(client)
    assert (call["status"], call["error"]["code"]) == (status, code)
    assert "no such order" not in call["error"]["detail"]
    words = outcome.answer if isinstance(outcome, McpError) else outcome.text
    assert words in call["result"], "the model is told what the server says"


async def test_definition_that_changed_is_not_called(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    server = await make_server(client, approval="never")
    body = {"tools": [{"mcp_server_id": server["id"]}]}
    await client.patch(f"/agents/{agent_id}", json=body)
    await accept(client, server, "find")
    fake_mcp.tools = (mcp_tool("find", "Something else."),)
    await client.post(f"/mcp-servers/{server['id']}/refresh")
    chat_model.script = [("One.", ("shop__find", "{}"))]

    await send(client, session_id)

    call = await only_call(client)
    assert (call["status"], call["error"]["code"]) == ("failed", "tool-changed")
    assert not fake_mcp.calls
    assert chat_model.requests[0].tools[0].description == "Does it."


async def test_result_that_breaks_its_schema_is_failed(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    schema = {"type": "object", "properties": {"order": {"type": "integer"}}}
    fake_mcp.tools = (mcp_tool("find", output_schema=schema),)
    await give(client, agent_id)
    chat_model.script = [("One.", ("shop__find", "{}"))]
    fake_mcp.outcomes = [McpResult(is_error=False, text="{}", structured={"order": "seven"})]

    await send(client, session_id)

    call = await only_call(client)
    assert (call["status"], call["error"]["code"]) == ("failed", "tool-failed")


async def test_secret_that_the_server_echoes_is_replaced(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    secret = {"name": "KEY", "value": planted_secrets.TOOL_SECRET, "hosts": ["mcp.example.com"]}
    await client.post("/secrets", json=secret)
    await give(client, agent_id, headers={"X-Key": "{{secrets.KEY}}", "X-Call": "{{call.id}}"})
    chat_model.script = [("One.", ("shop__find", "{}"))]
    fake_mcp.outcomes = [
        McpResult(is_error=False, text=f"your key is {planted_secrets.TOOL_SECRET}")
    ]

    await send(client, session_id)

    call = await only_call(client)
    assert call["result"] == "your key is [secret KEY]"
    [made] = fake_mcp.calls
    assert dict(made.target.headers) == {
        "X-Key": planted_secrets.TOOL_SECRET,
        "X-Call": call["id"],
    }


async def test_progress_is_an_event(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    async def report(on_progress: OnProgress | None) -> None:
        await anyio.lowlevel.checkpoint()
        assert on_progress
        on_progress(McpProgress(1, 2, "half"))

    await give(client, agent_id)
    chat_model.script = [("One.", ("shop__find", "{}"))]
    fake_mcp.while_calling = report

    stream = await send(client, session_id, accept="text/event-stream")

    [progress] = [
        event for event in parse(stream.text.splitlines()) if event.type == "tool_call.progress"
    ]
    assert (progress.data["progress"], progress.data["total"], progress.data["message"]) == (
        1,
        2,
        "half",
    )


@pytest.mark.parametrize("effect", ["once", "read"])
async def test_question_waits_for_an_answer_and_the_call_goes_on(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
    effect: str,
) -> None:
    await give(client, agent_id, effect=effect)
    chat_model.script = [("One.", ("shop__pay", "{}"))]
    fake_mcp.outcomes = [QUESTION, McpResult(is_error=False, text="paid")]
    waiting = await send(client, session_id)
    assert waiting.status_code == 202, waiting.text
    [action] = waiting.json()["required_actions"]
    assert action["action"] == "answer"
    assert action["question"] == {"message": "Really?", "form": FORM, "url": None}
    assert "s3cret-state" not in waiting.text
    [call] = (await client.get("/tool-calls?status=awaiting_answer")).json()
    path = f"/tool-calls/{call['id']}/resolution"

    approval = await client.post(path, json={"decision": "approve"})
    wrong = await client.post(path, json={"answer": {"content": {"sure": "yes"}}})
    taken = await client.post(path, json={"answer": {"content": {"sure": True}}})

    assert approval.json()["code"] == "action-not-wanted"
    assert (wrong.status_code, wrong.json()["code"]) == (422, "tool-output-invalid")
    assert taken.status_code == 200, taken.text
    await until_turn(client, call["turn_id"], "completed")
    assert len(fake_mcp.calls) == 2
    again = fake_mcp.calls[1]
    assert again.id == UUID(call["id"])
    assert again.question == QUESTION.state
    assert again.answer
    assert (again.answer.action, again.answer.content) == ("accept", {"sure": True})
    ended = await only_call(client)
    assert (ended["status"], ended["result"]) == ("completed", "paid")
    assert ended["resolution"]["decision"] == "answer"


async def test_second_question_is_asked_after_the_first(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    await give(client, agent_id)
    chat_model.script = [("One.", ("shop__pay", "{}"))]
    fake_mcp.outcomes = [QUESTION, QUESTION, McpResult(is_error=False, text="paid")]
    call_id = (await send(client, session_id)).json()["required_actions"][0]["call_id"]
    turn_id = (await client.get(f"/tool-calls/{call_id}")).json()["turn_id"]
    for action, status in (("accept", "requires_action"), ("decline", "completed")):
        body: dict[str, Any] = {"answer": {"action": action}}
        if action == "accept":
            body["answer"]["content"] = {"sure": True}
        taken = await client.post(f"/tool-calls/{call_id}/resolution", json=body)
        assert taken.status_code == 200, taken.text
        await until_turn(client, turn_id, status)

    assert [call.answer.action for call in fake_mcp.calls if call.answer] == ["accept", "decline"]
    assert (await only_call(client))["status"] == "completed"


async def test_turn_that_waits_for_an_answer_can_be_cancelled(
    client: httpx2.AsyncClient,
    agent_id: str,
    session_id: str,
    chat_model: ScriptedChatModel,
    fake_mcp: FakeMcp,
) -> None:
    await give(client, agent_id)
    chat_model.script = [("One.", ("shop__pay", "{}"))]
    fake_mcp.outcomes = [QUESTION]
    turn_id = (await send(client, session_id)).json()["id"]

    await client.post(f"/turns/{turn_id}/cancel")

    call = await only_call(client)
    assert call["status"] == "cancelled"
    late = await client.post(f"/tool-calls/{call['id']}/resolution", json={"answer": {}})
    assert (late.status_code, late.json()["code"]) == (409, "action-not-wanted")


async def test_tool_can_be_tested_outside_of_a_turn(
    client: httpx2.AsyncClient, fake_mcp: FakeMcp
) -> None:
    server = await make_server(client)
    await accept(client, server, "find")
    [tool] = (await client.get("/tools")).json()

    refused = await client.post(f"/tools/{tool['id']}/test", json={})
    tested = await client.post(f"/tools/{tool['id']}/test", json={"confirm": True})
    fake_mcp.outcomes = [QUESTION]
    asking = await client.post(f"/tools/{tool['id']}/test", json={"confirm": True})

    assert refused.json()["code"] == "tool-not-testable"
    assert (tested.json()["status"], tested.json()["result"]) == ("completed", "done")
    assert tested.json()["request"] is None
    assert (asking.status_code, asking.json()["code"]) == (422, "tool-not-testable")
    assert orjson.loads(tested.content)["error"] is None
