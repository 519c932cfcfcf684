"""Images in the results of tools: of an HTTP tool's answer, and of a client's output."""

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import orjson
import pytest
from sqlalchemy import select

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import StoredFile, ToolCall
from app.services.prompt_lines import PromptAnswer, PromptContent, PromptImage, PromptResult
from app.services.turns.execution.live_turn import LiveTurn
from app.state import Providers, State, build_state
from tests.conftest import StartServer
from tests.files import made
from tests.files.conftest import Upload
from tests.support.application import client_of
from tests.support.scripted_tools import ScriptedChatModel
from tests.support.sse import parse
from tests.support.tool_server import Answer, ToolServer, tool_server
from tests.support.turns import Gate, abandon, assert_nothing_stays_registered

pytestmark = pytest.mark.anyio
IMAGES_FOLLOW = "The images of the results above, in their order:"


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server() as server:
        server.answer = Answer(body=made.png(), content_type="image/png")
        yield server


@pytest.fixture
def chat_model() -> ScriptedChatModel:
    return ScriptedChatModel([("draw", "{}")])


@pytest.fixture
async def state(
    settings: Settings, database: Database, providers: Providers, server: ToolServer
) -> AsyncIterator[State]:
    own = settings.model_copy(update={"tools_allowed_addresses": server.allowed})
    async with build_state(own, database, providers) as state:
        yield state
        await assert_nothing_stays_registered(state["turns"])


@pytest.fixture
async def drawing_session(client: httpx2.AsyncClient, agent_id: str, server: ToolServer) -> str:
    """A session whose agent has a tool that answers with what the server does."""
    tool = {
        "name": "draw",
        "description": "Draws.",
        "kind": "http",
        "http": {"method": "GET", "url": f"{server.url}/image"},
    }
    return await session_with(client, agent_id, tool)


async def session_with(client: httpx2.AsyncClient, agent_id: str, tool: dict[str, Any]) -> str:
    created = await client.post("/tools", json=tool)
    assert created.status_code == 201, created.text
    tools = {"tools": [{"tool_id": created.json()["id"]}]}
    assert (await client.patch(f"/agents/{agent_id}", json=tools)).status_code == 200
    return (await client.post("/sessions", json={"agent_id": agent_id})).json()["id"]


async def send(client: httpx2.AsyncClient, session_id: str, **headers: str) -> httpx2.Response:
    body = {"session_id": session_id, "content": "Draw"}
    return await client.post("/messages/text", json=body, headers=headers)


async def test_image_of_an_http_tool_is_a_file_and_follows_its_result(
    client: httpx2.AsyncClient, drawing_session: str, chat_model: ScriptedChatModel
) -> None:
    stream = {"Accept": "text/event-stream"}
    events = parse((await send(client, drawing_session, **stream)).text.split("\n"))

    completed = next(event.data for event in events if event.type == "tool_call.completed")
    (file_id,) = completed["files"]
    assert completed["preview"] == "[an image: image/png, 3 x 2 pixels]"
    assert (await client.get(f"/files/{file_id}/content")).content == made.png()
    answer, result, images = chat_model.requests[1].messages[-3:]
    assert isinstance(answer, PromptAnswer)
    assert isinstance(result, PromptResult)
    assert isinstance(images, PromptContent)
    assert images.role == "user"
    assert images.pieces == (IMAGES_FOLLOW, PromptImage("image/png", made.png()))
    turn_id = events[0].data["turn_id"]
    (call,) = (await client.get(f"/turns/{turn_id}")).json()["tool_calls"]
    assert call["files"] == [
        {
            "type": "image",
            "file_id": file_id,
            "media_type": "image/png",
            "width": 3,
            "height": 2,
            "size_bytes": len(made.png()),
        }
    ]


async def test_later_turns_are_shown_the_same_lines_again(
    client: httpx2.AsyncClient, drawing_session: str, chat_model: ScriptedChatModel
) -> None:
    await send(client, drawing_session)
    await send(client, drawing_session)

    second, later = (list(request.messages) for request in chat_model.requests[1:3])
    assert later[: len(second)] == second
    messages = (await client.get(f"/sessions/{drawing_session}/messages")).json()
    types = [part["type"] for part in messages[1]["parts"]]
    assert types == ["tool_call", "image", "text"]


async def test_model_without_vision_is_told_that_there_was_an_image(
    client: httpx2.AsyncClient,
    agent_id: str,
    drawing_session: str,
    chat_model: ScriptedChatModel,
) -> None:
    await client.patch(f"/agents/{agent_id}", json={"vision": False})
    await send(client, drawing_session)

    line = chat_model.requests[1].messages[-1]
    assert line.content == f"{IMAGES_FOLLOW}\n\n[an image that this model cannot see]"


async def test_images_of_tools_go_with_their_session(
    client: httpx2.AsyncClient, drawing_session: str, database: Database
) -> None:
    await send(client, drawing_session)
    await client.delete(f"/sessions/{drawing_session}")
    async with database.reading() as db:
        assert (await db.scalars(select(StoredFile.id))).all() == []


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (made.png_header(9000, 9000), "image/png", "tool-failed"),
        (b"<svg/>", "image/svg+xml", None),
        (b"\0\1", "image/png", "tool-failed"),
        (made.png(padding=5_000_000), "image/png", "tool-result-too-large"),
        (made.png(padding=3_900_000), "IMAGE/PNG; x=y", None),
    ],
    ids=["megapixels", "svg is text", "no image", "large", "four megabytes"],
)
async def test_answer_that_is_no_fitting_image_fails(
    client: httpx2.AsyncClient,
    drawing_session: str,
    server: ToolServer,
    database: Database,
    body: bytes,
    content_type: str,
    code: str | None,
) -> None:
    server.answer = Answer(body=body, content_type=content_type)
    assert (await send(client, drawing_session)).status_code == 200
    async with database.reading() as db:
        call = (await db.scalars(select(ToolCall))).one()
    assert call.error_code == code


async def test_image_that_cannot_be_stored_is_said_so_and_harms_no_turn(
    client: httpx2.AsyncClient,
    drawing_session: str,
    state: State,
    server: ToolServer,
    chat_model: ScriptedChatModel,
) -> None:
    server.answer = Answer(body=made.png(padding=500_000), content_type="image/png")
    state["storage"].limit_bytes = 200_000
    assert (await send(client, drawing_session)).status_code == 200

    last = chat_model.requests[1].messages[-1]
    assert last.content.endswith("[The image could not be stored.]")


async def test_turn_that_is_taken_over_is_shown_the_stored_image(
    client: httpx2.AsyncClient,
    agent_id: str,
    state: State,
    server: ToolServer,
    database: Database,
    second_server: StartServer,
) -> None:
    tool = {
        "name": "draw",
        "description": "Draws.",
        "kind": "http",
        "effect": "idempotent",
        "http": {"method": "GET", "url": f"{server.url}/image"},
    }
    session_id = await session_with(client, agent_id, tool)
    gate, model = Gate(), ScriptedChatModel()
    first = ScriptedChatModel([("draw", "{}")])

    async def wait_at_the_second(number: int) -> None:
        if number == 2:
            await gate()

    first.while_thinking = wait_at_the_second
    engine: Any = state["turns"]
    engine._runtime = replace(engine._runtime, chat_model=first)  # noqa: SLF001
    started = await send(client, session_id, Prefer="respond-async")
    await gate.arrived.wait()
    turn_id = UUID(started.json()["id"])
    await abandon(database, turn_id)
    async with second_server(chat_model=model) as other:
        live: LiveTurn = await other["turns"].find(ADMIN, turn_id)
        await other["turns"].wait(live)
    gate.opened.set()

    images = model.requests[0].messages[-1]
    assert isinstance(images, PromptContent)
    assert images.pieces == (IMAGES_FOLLOW, PromptImage("image/png", made.png()))
    assert len(server.requests) == 1


CLIENT_TOOL = {"name": "draw", "description": "Draws.", "kind": "client"}


@pytest.fixture
async def waiting_call(client: httpx2.AsyncClient, agent_id: str) -> str:
    """A call of a client's tool that waits for its output."""
    session_id = await session_with(client, agent_id, CLIENT_TOOL)
    waiting = await send(client, session_id)
    assert waiting.status_code == 202, waiting.text
    return waiting.json()["required_actions"][0]["call_id"]


async def resolve(client: httpx2.AsyncClient, call_id: str, output: object) -> httpx2.Response:
    return await client.post(f"/tool-calls/{call_id}/resolution", json={"output": output})


@pytest.mark.parametrize("with_text", [False, True])
async def test_client_sends_images_as_output(
    client: httpx2.AsyncClient,
    waiting_call: str,
    upload: Upload,
    chat_model: ScriptedChatModel,
    with_text: bool,
) -> None:
    file = await upload("a.png", made.png())
    part = {"type": "image", "file_id": file["id"]}
    output = [{"type": "text", "text": "Here it is"}, part] if with_text else part

    resolved = await resolve(client, waiting_call, output)
    again = await resolve(client, waiting_call, output)

    assert (resolved.status_code, again.status_code) == (200, 200), resolved.text
    assert resolved.json()["files"][0]["file_id"] == file["id"]
    turn = await client.get(f"/turns/{resolved.json()['turn_id']}", params={"wait_seconds": 30})
    assert turn.json()["status"] == "completed"
    result, images = chat_model.requests[1].messages[-2:]
    assert result.content == ("Here it is" if with_text else "[The output is an image.]")
    assert isinstance(images, PromptContent)
    assert images.pieces[1] == PromptImage("image/png", made.png())
    assert (await client.get(f"/files/{file['id']}")).json()["expires_at"] is None


async def test_other_image_is_another_action(
    client: httpx2.AsyncClient, waiting_call: str, upload: Upload
) -> None:
    first, second = await upload("a.png", made.png()), await upload("b.png", made.png())
    taken = [
        await resolve(client, waiting_call, {"type": "image", "file_id": file["id"]})
        for file in (first, second)
    ]
    assert [response.status_code for response in taken] == [200, 409]


async def test_output_with_images_that_do_not_fit_is_refused_and_can_be_sent_again(
    client: httpx2.AsyncClient, waiting_call: str, upload: Upload
) -> None:
    image, page = await upload("a.png", made.png()), await upload("a.txt", b"Words")
    large = await upload("b.png", made.png(padding=6_000_000))
    wrong = [
        ({"type": "image", "file_id": str(uuid4())}, 404, "file-not-found"),
        ({"type": "image", "file_id": page["id"]}, 422, "file-unreadable"),
        ({"type": "image", "file_id": large["id"]}, 413, "file-too-large"),
        ([{"type": "image", "file_id": image["id"]}] * 5, 422, "file-unreadable"),
    ]
    for output, status, code in wrong:
        response = await resolve(client, waiting_call, output)
        assert (response.status_code, response.json()["code"]) == (status, code)
    assert (await resolve(client, waiting_call, "fine")).status_code == 200


@pytest.mark.parametrize(
    "output",
    [
        {"type": "image"},
        {"type": "image", "file_id": "no id"},
        {"type": "image", "file_id": 5},
        {"type": "image", "file_id": "x", "more": 1},
        [{"type": "text", "text": "only"}],
        [],
    ],
)
async def test_other_json_is_shown_as_json(
    client: httpx2.AsyncClient, waiting_call: str, output: object
) -> None:
    response = await resolve(client, waiting_call, output)
    assert response.status_code == 200
    assert orjson.loads(response.json()["result"]) == output
    assert response.json()["files"] is None


async def test_end_user_cannot_send_the_image_of_another(
    client: httpx2.AsyncClient, settings: Settings, state: State, waiting_call: str, upload: Upload
) -> None:
    """A session's token sees what it uploaded, and what is in its session, alone."""
    call = (await client.get(f"/tool-calls/{waiting_call}")).json()
    token = (await client.post(f"/sessions/{call['session_id']}/tokens", json={})).json()["token"]
    theirs = await upload("a.png", made.png())
    bearer = {"Authorization": f"Bearer {token}"}
    async with client_of(settings, state) as guest:
        guest.headers.update(bearer)
        assert (await guest.get("/files")).json() == []
        output = {"type": "image", "file_id": theirs["id"]}
        assert (await resolve(guest, waiting_call, output)).status_code == 404
        body = {"session_id": call["session_id"], "content": [output]}
        assert (await guest.post("/messages/text", json=body)).status_code == 404
        own = await guest.post("/files", files={"file": ("a.png", made.png())})
        assert own.status_code == 201
        assert [file["id"] for file in (await guest.get("/files")).json()] == [own.json()["id"]]
        output = {"type": "image", "file_id": own.json()["id"]}
        assert (await resolve(guest, waiting_call, output)).status_code == 200


async def test_adapter_sends_images_as_data_urls() -> None:
    from app.services.openai_service import OpenAIChatModel, ProviderClient
    from app.services.ports import ChatRequest
    from app.services.prompt_lines import PromptMessage
    from tests.support.provider import Provider

    line = PromptContent("user", "Look", ("Look", PromptImage("image/png", made.png()), "\ud800"))
    with Provider() as provider:
        async with ProviderClient(provider.base_url, "sk-unused-key-of-a-test") as client:
            model = OpenAIChatModel(client, "m")
            request = ChatRequest([PromptMessage("system", "Be brief."), line])
            assert [item async for item in model.stream(request)]
        sent = provider.requests[0].body["messages"]
    url = f"data:image/png;base64,{base64.b64encode(made.png()).decode()}"
    assert sent == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look"},
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "\ufffd"},
            ],
        },
    ]
