"""`/api/chat` over HTTP: what is stored, streamed, resumed, stopped, regenerated and refused."""

from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx2
import orjson
import pytest

from app.core.config import Settings
from app.core.security import DEFAULT_WORKSPACE_ID, Caller, CallerKind, Permission
from app.services import crud
from app.services.ports import ReasoningDelta
from app.state import State
from tests.files.made import png
from tests.support.application import client_of
from tests.support.scripted_tools import ScriptedChatModel, ScriptedRunner, agent_tools
from tests.support.tool_turns import APPROVED_TOOL, CLIENT_TOOL, GiveTools
from tests.support.turns import Gate, wait_until_settled
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("agent_id")]

PATH = "/api/chat"


def user(text: str, message_id: str = "u", **part: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}, *([part] if part else [])]
    return {"id": message_id, "role": "user", "parts": parts}


class Page:
    """A page with `useChat`: it keeps its messages, and sends them all."""

    def __init__(self, client: httpx2.AsyncClient, chat_id: str = "chat") -> None:
        self.client = client
        self.chat_id = chat_id
        self.messages: list[dict[str, Any]] = []
        self.headers: dict[str, str] = {}

    async def post(self, **body: Any) -> httpx2.Response:
        given = {"id": self.chat_id, "messages": self.messages, "trigger": "submit-message"} | body
        return await self.client.post(PATH, json=given, headers=self.headers)

    async def send(self, text: str, **body: Any) -> list[dict[str, Any]]:
        """Send a message; return the chunks of its answer, which is added to the messages."""
        self.messages.append(user(text, str(uuid4())))
        return self.take(await self.post(**body))

    def take(self, response: httpx2.Response) -> list[dict[str, Any]]:
        frames = chunks(response)
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        answer: dict[str, Any] = {"id": frames[0]["messageId"], "role": "assistant", "parts": []}
        self.messages.append(answer)
        return frames


def chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    *data, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [orjson.loads(each.removeprefix("data: ")) for each in data]


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame.get("delta", "") for frame in frames if frame["type"] == "text-delta")


async def history(client: httpx2.AsyncClient, session_id: str) -> list[str]:
    session = (await client.get(f"/sessions/{session_id}")).json()
    return [message["content"] for message in session["messages"]]


@pytest.fixture
def page(client: httpx2.AsyncClient) -> Page:
    return Page(client)


async def sessions(client: httpx2.AsyncClient) -> list[str]:
    """Return the ids of all sessions, the newest first."""
    return [each["id"] for each in (await client.get("/sessions")).json()]


async def test_three_turns_are_one_stored_session(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [("One.",), ("Two.",), ("Three.",)]

    answers = [text_of(await page.send(text)) for text in ("a", "b", "c")]

    (session_id,) = await sessions(client)
    assert answers == ["One.", "Two.", "Three."]
    assert await history(client, session_id) == ["a", "One.", "b", "Two.", "c", "Three."]
    shown = [line.content for line in chat_model.requests[-1].messages]
    assert shown == ["Be brief.", "a", "One.", "b", "Two.", "c"]


async def test_chat_may_be_a_session_and_answers_have_the_ids_of_its_messages(
    client: httpx2.AsyncClient, session_id: str
) -> None:
    page = Page(client, session_id)

    response = await page.post(messages=[user("a")])

    stored = (await client.get(f"/sessions/{session_id}")).json()["messages"]
    assert response.headers["x-session-id"] == session_id
    assert response.headers["x-turn-id"] == stored[1]["turn_id"]
    assert chunks(response)[0]["messageId"] == stored[1]["id"]
    assert await sessions(client) == [session_id]


async def test_only_what_is_new_is_sent_where_a_client_sends_its_last_message_alone(
    page: Page, client: httpx2.AsyncClient
) -> None:
    for text in ("a", "b"):
        assert (await page.post(messages=[user(text)])).status_code == 200

    (session_id,) = await sessions(client)
    assert await history(client, session_id) == ["a", "Done.", "b", "Done."]


async def test_agent_is_named_by_body_header_or_chat(
    page: Page, client: httpx2.AsyncClient
) -> None:
    eve = (await client.post("/agents", json={"name": "Eve", "system_prompt": ""})).json()["id"]

    unknown = await page.post(messages=[user("a")])
    await page.send("a", agent="agent-eve")
    await page.send("b")
    page.headers = {"X-Agent": "agent-ada"}
    other = await page.post(messages=[user("c")])

    assert (unknown.status_code, unknown.text) == (
        404,
        "Say which agent answers: name it in the request.",
    )
    assert other.status_code == 200
    listed = (await client.get("/sessions")).json()
    assert [each["agent_id"] == eve for each in listed] == [False, True]
    assert await history(client, listed[1]["id"]) == ["a", "Done.", "b", "Done."]


async def test_regenerated_answer_replaces_the_last_one(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [("One.",), ("Two.",), ("Better.",), ("Three.",)]
    await page.send("a")
    await page.send("b")
    page.messages.pop()

    page.take(await page.post(trigger="regenerate-message"))
    await page.send("c")

    newest, first = await sessions(client)
    assert await history(client, newest) == ["a", "One.", "b", "Better.", "c", "Three."]
    assert await history(client, first) == ["a", "One.", "b", "Two."]


async def test_first_answer_is_regenerated_and_an_earlier_message_edited(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [("One.",), ("Two.",), ("Again.",), ("Edited.",)]
    await page.send("a")
    await page.send("b")
    del page.messages[1:]
    page.take(await page.post(trigger="regenerate-message", messageId=str(uuid4())))
    await page.send("c")
    # The message "c" is changed: the answers before it stay.
    page.messages = [*page.messages[:2], user("c2", "edited")]

    page.take(await page.post(messageId="edited"))

    newest, *_ = await sessions(client)
    assert await history(client, newest) == ["a", "Again.", "c2", "Done."]


async def test_unknown_answer_is_no_place_to_go_on_from(page: Page) -> None:
    await page.send("a")
    page.messages[1]["id"] = str(uuid4())
    page.messages.append(user("b"))

    refused = await page.post(trigger="regenerate-message")

    assert (refused.status_code, refused.headers["x-error-code"]) == (404, "message-not-found")


async def test_message_of_a_failed_turn_is_not_stored_twice(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [("One.",), (), ("Two.",)]
    await page.send("a")
    failed = await page.send("b")
    page.messages.pop()

    await page.send("c")

    (session_id,) = await sessions(client)
    assert failed[-1]["type"] == "error"
    assert await history(client, session_id) == ["a", "One.", "b", "", "c", "Two."]


async def test_failure_is_an_error_with_a_sentence(
    page: Page, chat_model: ScriptedChatModel
) -> None:
    chat_model.script = [()]

    frames = await page.send("a")

    assert [frame["type"] for frame in frames] == ["start", "start-step", "error"]
    assert frames[-1]["errorText"].endswith(".")


async def test_reasoning_is_shown(page: Page, chat_model: ScriptedChatModel) -> None:
    chat_model.script = [(ReasoningDelta("Hm."), "Yes.")]

    kinds = [frame["type"] for frame in await page.send("a")]

    assert kinds[2:5] == ["reasoning-start", "reasoning-delta", "reasoning-end"]


@asynccontextmanager
async def answering(page: Page, gate: Gate) -> AsyncGenerator[list[httpx2.Response]]:
    """Send a message; during the block its turn waits in the model."""
    responses: list[httpx2.Response] = []

    async def send() -> None:
        responses.append(await page.post(messages=[user("a")]))

    async with anyio.create_task_group() as group:
        group.start_soon(send)
        await gate.arrived.wait()
        yield responses
        gate.opened.set()


@pytest.fixture
def gate(chat_model: ScriptedChatModel) -> Gate:
    gate = Gate()

    async def wait(_number: int) -> None:
        await gate()

    chat_model.while_thinking = wait
    return gate


async def test_running_turn_is_resumed_from_its_start(
    page: Page, client: httpx2.AsyncClient, gate: Gate, state: State
) -> None:
    resumed: list[httpx2.Response] = []

    async def resume() -> None:
        resumed.append(await client.get(f"{PATH}/chat/stream"))

    async with answering(page, gate) as sent, anyio.create_task_group() as group:
        group.start_soon(resume)
        await until(lambda: state["open_streams"].stream_count == 2)
        gate.opened.set()

    assert chunks(resumed[0]) == chunks(sent[0])
    idle = await client.get(f"{PATH}/chat/stream")
    unknown = await client.get(f"{PATH}/{'x' * 300}/stream")
    assert (idle.status_code, unknown.status_code) == (204, 204)


async def test_stop_cancels_what_runs_and_what_waits(
    page: Page, client: httpx2.AsyncClient, gate: Gate, state: State
) -> None:
    waiting: list[httpx2.Response] = []

    async def send_another() -> None:
        waiting.append(await page.post(messages=[user("b")]))

    async with answering(page, gate) as sent, anyio.create_task_group() as group:
        group.start_soon(send_another)
        await until(lambda: state["turns"].turn_counts().get("queued") == 1)
        assert (await client.delete(f"{PATH}/chat/stream")).status_code == 204

    for response in (*sent, *waiting):
        assert chunks(response)[-1] == {"type": "abort"}
    assert (await client.delete(f"{PATH}/chat/stream")).status_code == 204


async def test_busy_chat_is_refused_where_the_client_says_so(page: Page, gate: Gate) -> None:
    async with answering(page, gate):
        page.headers = {"X-On-Busy": "reject"}
        refused = await page.post(messages=[user("b")])
        page.headers = {"X-On-Busy": "perhaps"}
        wrong = await page.post(messages=[user("b")])

    assert (refused.status_code, refused.headers["x-error-code"]) == (409, "session-busy")
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "text/plain; charset=utf-8")


async def test_regenerating_cancels_the_turn_that_is_replaced(
    page: Page, client: httpx2.AsyncClient, gate: Gate
) -> None:
    again: list[httpx2.Response] = []
    page.messages = [user("a")]
    async with answering(page, gate) as sent, anyio.create_task_group() as group:

        async def regenerate() -> None:
            again.append(await page.post(trigger="regenerate-message"))

        group.start_soon(regenerate)
        await until(lambda: gate.waiting == 2)
        gate.opened.set()

    assert chunks(sent[0])[-1] == {"type": "abort"}
    assert text_of(chunks(again[0])) == "Done."
    assert len(await sessions(client)) == 2


async def test_repeated_request_with_its_key_is_answered_the_same(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel
) -> None:
    await page.send("a")
    page.messages.pop()
    page.headers = {"Idempotency-Key": "once"}

    first = await page.post(trigger="regenerate-message")
    second = await page.post(trigger="regenerate-message")

    assert chunks(first) == chunks(second)
    assert second.headers["idempotent-replayed"] == "true"
    assert len(chat_model.requests) == len(await sessions(client)) == 2


async def test_output_of_a_clients_tool_lets_the_answer_go_on(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel, give_tools: GiveTools
) -> None:
    await give_tools(agent_tools(CLIENT_TOOL))
    chat_model.script = [("Wait.", ("act", '{"n":1}')), ("It is so.",)]

    asked = await page.send("a")
    resumed = chunks(await client.get(f"{PATH}/chat/stream"))
    tool = next(frame for frame in asked if frame["type"] == "tool-input-available")
    page.messages[-1]["parts"] = [
        {
            "type": "tool-act",
            "toolCallId": tool["toolCallId"],
            "state": "output-available",
            "input": tool["input"],
            "output": {"sky": "blue"},
        }
    ]
    answer_id = page.messages[-1]["id"]
    request = list(page.messages)
    answered = page.take(await page.post())
    again = await page.post(messages=request)

    assert (tool["toolName"], tool["input"]) == ("act", {"n": 1})
    assert asked == resumed
    assert answered[0]["messageId"] == answer_id
    assert text_of(answered) == "It is so."
    assert not [frame for frame in answered if frame["type"].startswith("tool-")]
    assert chunks(again) == answered
    assert chat_model.requests[-1].messages[-1].content == '{"sky":"blue"}'


@pytest.mark.parametrize("approved", [True, False])
async def test_approval_lets_the_call_run(
    page: Page,
    chat_model: ScriptedChatModel,
    runner: ScriptedRunner,
    give_tools: GiveTools,
    *,
    approved: bool,
) -> None:
    await give_tools(agent_tools(APPROVED_TOOL))
    chat_model.script = [(("act", "{}"), ("act", "{}"))]

    asked = await page.send("a")
    requests = [frame for frame in asked if frame["type"] == "tool-approval-request"]
    parts = [
        {
            "type": "tool-act",
            "toolCallId": request["toolCallId"],
            "state": "approval-responded",
            "approval": {"id": request["approvalId"], "approved": approved},
        }
        for request in requests
    ]
    page.messages[-1]["parts"] = parts[:1]
    half = page.take(await page.post())
    page.messages[-1]["parts"] = parts
    answered = page.take(await page.post())

    assert [frame["type"] for frame in half] == ["start", "start-step", "finish-step", "finish"]
    results = [frame["type"] for frame in answered if frame["type"].startswith("tool-output")]
    assert results == ["tool-output-available" if approved else "tool-output-error"] * 2
    assert len(runner.calls) == 2 * approved
    assert text_of(answered) == "Done."


async def test_client_that_knows_no_approvals_is_not_asked(
    page: Page, client: httpx2.AsyncClient, chat_model: ScriptedChatModel, give_tools: GiveTools
) -> None:
    await give_tools(agent_tools(APPROVED_TOOL))
    chat_model.script = [(("act", "{}"),)]

    asked = await page.send("a", approvals=False)

    assert "tool-approval-request" not in {frame["type"] for frame in asked}
    await client.delete(f"{PATH}/chat/stream")


async def test_images_are_shown_to_the_model(
    page: Page, client: httpx2.AsyncClient, agent_id: str, chat_model: ScriptedChatModel
) -> None:
    await client.patch(f"/agents/{agent_id}", json={"vision": True})
    uploaded = await client.post("/files", files={"file": ("a.png", png())})
    file_url = f"/files/{uploaded.json()['id']}"

    first = user("See", type="file", mediaType="image/png", url=data_url())
    second = user("And", type="file", mediaType="image/png", url=file_url)
    for message in (first, second):
        chunks(await page.post(messages=[message]))

    shown = chat_model.requests[-1].messages
    assert [len(getattr(line, "pieces", ())) for line in shown if line.role == "user"] == [2, 2]


def data_url() -> str:
    return f"data:image/png;base64,{b64encode(png()).decode()}"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"id": ""}, "`id`: must have 1 to 200 visible characters."),
    ({"id": "a\x00"}, "`id`: must have 1 to 200 visible characters."),
    ({"messages": []}, "There is no message to answer."),
    ({"messages": [{"role": "user"}]}, "A message has no list of `parts`."),
    ({"messages": [{"role": "user", "parts": [1]}]}, "The parts of a message are objects."),
    ({"messages": [{"role": "system", "parts": []}]}, "New messages are the user's"),
    ({"messages": [user("")]}, "A message has a part that is not valid"),
    ({"messages": [user("x" * 200_001)]}, "A message has a part that is not valid"),
    ({"messages": [{"role": "assistant", "parts": []}]}, "there is nothing to answer"),
    (
        {"messages": [user("a", type="file", url="http://x/y")]},
        "Files are images by a data URL",
    ),
    ({"messages": [user("a", type="audio")]}, "The parts of the user's messages are"),
    ({"trigger": "resume-stream"}, "`trigger`"),
    ({"agent": "agent-none"}, "No agent with this id or name exists"),
]


@pytest.mark.parametrize(("body", "said"), REFUSED)
async def test_what_is_wrong_is_said_in_plain_text(
    page: Page, client: httpx2.AsyncClient, body: dict[str, Any], said: str
) -> None:
    refused = await page.post(**{"messages": [user("a")], **body})

    assert refused.status_code == (404 if "agent" in body else 422)
    assert said in refused.text
    assert await sessions(client) == []


async def test_unknown_calls_are_not_found(page: Page) -> None:
    part = {"type": "tool-x", "toolCallId": str(uuid4()), "state": "output-available", "output": 1}

    refused = await page.post(messages=[{"role": "assistant", "parts": [part]}])

    assert (refused.status_code, refused.headers["x-error-code"]) == (404, "tool-call-not-found")


def caller_of(user_id: str | None) -> Caller:
    kind = CallerKind.USER if user_id else CallerKind.KEY
    return Caller(DEFAULT_WORKSPACE_ID, kind, frozenset(Permission), user_id=user_id)


async def test_every_user_has_chats_of_their_own(agent_id: str, state: State) -> None:
    users = ("ann", "bob", None)
    async with state["database"].transaction() as db:
        made = {
            user_id: await crud.create_named_session(db, caller_of(user_id), "chat", UUID(agent_id))
            for user_id in users
        }
    ids = {user_id: session.id for user_id, session in made.items()}
    find = crud.find_named_session
    for user_id in users:
        found = await state["database"].run(find, caller_of(user_id), "chat", None)
        assert found.session_id == ids[user_id]
    # The id of another user's session is a name like any other.
    other = await state["database"].run(find, caller_of("ann"), str(ids["bob"]), None)
    assert other.session_id is None


async def test_chats_of_one_name_that_begin_at_once_are_one_session(
    client: httpx2.AsyncClient, state: State
) -> None:
    async def begin() -> None:
        response = await client.post(PATH, json={"id": "chat", "messages": [user("a")]})
        assert response.status_code == 200, response.text

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(begin)

    await wait_until_settled(state["database"])
    assert len(await sessions(client)) == 1


async def test_deleted_session_frees_its_name(page: Page, client: httpx2.AsyncClient) -> None:
    await page.send("a")
    (session_id,) = await sessions(client)
    await client.delete(f"/sessions/{session_id}")

    await page.send("b")

    (again,) = await sessions(client)
    assert again != session_id
    assert await history(client, again) == ["b", "Done."]


async def test_key_without_sessions_write_begins_no_chat(
    client: httpx2.AsyncClient, settings: Settings, state: State
) -> None:
    scopes = ["turns:write", "turns:read"]
    key = (await client.post("/keys", json={"name": "turns", "scopes": scopes})).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    async with client_of(settings, state) as other:
        body = {"id": "chat", "messages": [user("a")]}
        refused = await other.post(PATH, json=body, headers=headers)

    assert (refused.status_code, refused.headers["x-error-code"]) == (403, "forbidden")
