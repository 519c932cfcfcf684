"""`POST /agui/{agent}` over HTTP: what is stored, what goes on, and what is refused."""

from base64 import b64encode
from itertools import groupby
from typing import Any
from uuid import uuid4

import anyio
import httpx2
import orjson
import pytest

from app.state import State
from tests.files.made import png
from tests.support.scripted_tools import ScriptedChatModel, ScriptedRunner, agent_tools
from tests.support.tool_turns import APPROVED_TOOL, CLIENT_TOOL, GiveTools
from tests.support.turns import Gate, wait_until_settled

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]


def user(content: object) -> dict[str, Any]:
    return {"id": str(uuid4()), "role": "user", "content": content}


async def post(
    client: httpx2.AsyncClient, *messages: dict[str, Any], agent: str = "agent-ada", **body: Any
) -> httpx2.Response:
    given: dict[str, Any] = {
        "threadId": "thread",
        "runId": str(uuid4()),
        "messages": messages,
        "state": {},
    }
    return await client.post(f"/agui/{agent}", json=given | body)


async def run(
    client: httpx2.AsyncClient, *messages: dict[str, Any], **body: Any
) -> list[dict[str, Any]]:
    """Return the events of a run."""
    response = await post(client, *messages, **body)
    assert response.status_code == 200, response.text
    *data, rest = response.text.split("\n\n")
    assert rest == ""
    return [orjson.loads(each.removeprefix("data: ")) for each in data]


def text_of(events: list[dict[str, Any]]) -> str:
    kind = "TEXT_MESSAGE_CONTENT"
    return "".join(event["delta"] for event in events if event["type"] == kind)


async def histories(client: httpx2.AsyncClient) -> list[list[str]]:
    """Return the contents of each session, the newest first."""
    listed = (await client.get("/sessions")).json()
    found = [(await client.get(f"/sessions/{each['id']}")).json() for each in listed]
    return [[message["content"] for message in each["messages"]] for each in found]


async def test_three_runs_of_a_thread_are_one_session(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [("One.",), ("Two.",), ("Three.",)]
    messages: list[dict[str, Any]] = []

    for content in ("a", "b", "c"):
        messages.append(user(content))
        events = await run(client, *messages)
        message_id = events[1]["messageId"]
        messages.append({"id": message_id, "role": "assistant", "content": text_of(events)})

    assert await histories(client) == [["a", "One.", "b", "Two.", "c", "Three."]]


async def test_run_that_is_sent_again_is_the_same(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    messages = (user("a"),)

    first = await run(client, *messages, runId="run")
    second = await run(client, *messages, runId="run")
    other = await post(client, user("b"), runId="run")
    await run(client, *messages, runId="run", threadId="other thread")

    assert first == second
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")
    assert len(chat_model.requests) == 2


async def test_output_of_a_clients_tool_lets_the_run_go_on(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel, give_tools: GiveTools
) -> None:
    await give_tools(agent_tools(CLIENT_TOOL))
    chat_model.script = [(("act", "{}"), ("act", "{}"))]
    tools: list[dict[str, Any]] = [{"name": "act", "description": "", "parameters": {}}]

    asked = await run(client, user("a"), tools=tools)
    calls: list[str] = asked[-1]["outcome"]["pendingToolCallIds"]
    answer: dict[str, Any] = {"id": "x", "role": "assistant", "toolCalls": []}
    results = [
        {"id": "r1", "role": "tool", "toolCallId": calls[0], "content": "blue"},
        {"id": "r2", "role": "tool", "toolCallId": calls[1], "content": "", "error": "It broke."},
    ]
    half = await run(client, user("a"), answer, results[0])
    answered = await run(client, user("a"), answer, *results)

    assert half[-1]["outcome"]["pendingToolCallIds"] == calls[1:]
    assert text_of(answered) == "Done."
    shown = [line.content for line in chat_model.requests[-1].messages][-2:]
    assert shown == ["blue", "It broke."]
    assert not [event for event in answered if event["type"].startswith("TOOL_CALL")]


async def test_tool_that_a_run_brings_itself_ends_it_and_is_answered_by_the_next(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    tools = [{"name": "color", "description": "A color.", "parameters": {"type": "object"}}]
    chat_model.script = [("Let me look.", ("color", '{"of": "sky"}'), ("color", "{}"))]

    asked = await run(client, user("Which color?"), tools=tools)
    calls: list[str] = asked[-1]["outcome"]["pendingToolCallIds"]
    answer: dict[str, Any] = {"id": "x", "role": "assistant", "toolCalls": []}
    results = [
        {"id": "r1", "role": "tool", "toolCallId": calls[0], "content": "blue"},
        {"id": "r2", "role": "tool", "toolCallId": calls[1], "content": "", "error": "It broke."},
    ]
    unknown = await post(
        client, user("a"), answer, {"role": "tool", "toolCallId": "call_x", "content": "1"}
    )
    answered = await run(client, user("Which color?"), answer, *results, user("Say it."))

    of_calls = [event for event in asked if event["type"].startswith("TOOL_CALL")]
    kinds = [kind for kind, _ in groupby(event["type"] for event in of_calls)]
    pieces = [event["delta"] for event in of_calls if event["type"] == "TOOL_CALL_ARGS"]
    assert "".join(pieces) == '{"of": "sky"}{}'
    assert kinds == ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END"] * 2
    assert [e["toolCallId"] for e in asked if e["type"] == "TOOL_CALL_START"] == calls
    assert asked[-1]["type"] == "RUN_FINISHED"
    assert [tool.name for tool in chat_model.requests[0].tools] == ["color"]
    assert (unknown.status_code, unknown.json()["code"]) == (422, "tool-result-unknown")
    assert text_of(answered) == "Done."
    shown = [line.content for line in chat_model.requests[-1].messages]
    assert shown[-3:] == ["blue", "It broke.", "Say it."]


async def test_agent_with_tools_takes_no_others(
    client: httpx2.AsyncClient, give_tools: GiveTools
) -> None:
    await give_tools(agent_tools(CLIENT_TOOL))

    refused = await post(client, user("a"), tools=[{"name": "unknown"}])

    assert refused.status_code == 422
    assert "a tool that the agent does not have" in refused.json()["detail"]


@pytest.mark.parametrize(
    ("status", "payload", "runs"),
    [
        ("resolved", {"approved": True}, 1),
        ("resolved", True, 1),
        ("resolved", {"approved": False, "reason": "No."}, 0),
        ("cancelled", None, 0),
    ],
)
async def test_approval_is_an_interrupt(  # fixtures and cases
    client: httpx2.AsyncClient,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    give_tools: GiveTools,
    status: str,
    payload: object,
    runs: int,
) -> None:
    await give_tools(agent_tools(APPROVED_TOOL))
    chat_model.script = [(("act", "{}"),)]

    asked = await run(client, user("a"))
    (interrupt,) = asked[-1]["outcome"]["interrupts"]
    answer = {"interruptId": interrupt["id"], "status": status, "payload": payload}
    answered = await run(client, user("a"), {"id": "x", "role": "assistant"}, resume=[answer])

    assert len(runner.calls) == runs
    assert text_of(answered) == "Done."
    assert "TOOL_CALL_RESULT" in {event["type"] for event in answered}


async def test_image_is_shown_to_the_model(
    client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    source = {"type": "data", "value": b64encode(png()).decode(), "mimeType": "image/png"}

    await run(client, user([{"type": "text", "text": "See"}, {"type": "image", "source": source}]))

    assert len(getattr(chat_model.requests[-1].messages[-1], "pieces", ())) == 2


@pytest.mark.parametrize(("policy", "status"), [("cancel", "cancelled"), ("continue", "completed")])
async def test_run_of_a_client_that_leaves(
    client: httpx2.AsyncClient,
    chat_model: ScriptedChatModel,
    state: State,
    policy: str,
    status: str,
) -> None:
    gate = Gate()

    async def wait(_number: int) -> None:
        await gate()

    chat_model.while_thinking = wait

    async with anyio.create_task_group() as group:

        async def leave() -> None:
            with leaving:
                await run(client, user("a"), forwardedProps={"on_disconnect": policy})

        leaving = anyio.CancelScope()
        group.start_soon(leave)
        await gate.arrived.wait()
        leaving.cancel()
    gate.opened.set()
    await wait_until_settled(state["database"])

    assert [each["status"] for each in (await client.get("/turns")).json()] == [status]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"messages": []}, 422, "There is no message to answer."),
        ({"messages": [{"role": "system", "content": "x"}]}, 422, "New messages are the user's"),
        ({"messages": [user(7)]}, 422, "The content of a message is text, or a list"),
        ({"messages": [user([{"type": "audio"}])]}, 422, "The parts of a message are"),
        ({"threadId": ""}, 422, "`threadId`"),
        ({"tools": [{"name": "a b"}]}, 422, "1 to 64 letters"),
        ({"tools": [{"name": "a"}, {"name": "a"}]}, 422, "a name of its own"),
        ({"resume": [{"interruptId": "x", "status": "resolved"}]}, 422, "no run of this thread"),
        ({"forwardedProps": {"on_disconnect": "x"}}, 422, "on_disconnect"),
        ({"agent": "agent-none"}, 404, "No agent with this id or name"),
    ],
)
async def test_what_is_wrong_is_said(
    client: httpx2.AsyncClient, body: dict[str, Any], status: int, said: str
) -> None:
    options = {name: value for name, value in body.items() if name != "messages"}

    refused = await post(client, *body.get("messages", [user("a")]), **options)

    assert (refused.status_code, refused.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert said in refused.json()["detail"]
    assert await histories(client) == []
