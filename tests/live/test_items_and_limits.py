"""Images as items, responses that are asked for again, and room for what a client brings."""

import base64
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from app.core.config import Settings
from app.core.database import Database
from app.models import Message, Turn
from app.services.prompt_lines import PromptContent, PromptImage
from tests.conftest import StartServer
from tests.files.made import png
from tests.live.conftest import OpenLine, ask, line_of, say, send_message, silence
from tests.support.fake_providers import FakeChatModel, FakeTranscriber
from tests.support.websocket import WebSocket

pytestmark = pytest.mark.anyio

URL = "data:image/png;base64," + base64.b64encode(png()).decode()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a provider whose models may see images."""
    return settings.model_copy(update={"openai_api_key": SecretStr("sk-unused-key-of-a-test")})


@pytest.fixture(autouse=True)
async def agent_that_sees(client: httpx2.AsyncClient) -> None:
    made = await client.post("/agents", json={"name": "Ada", "system_prompt": "", "vision": True})
    assert made.status_code == 201, made.text


async def show(line: WebSocket, *content: dict[str, str]) -> None:
    item = {"type": "message", "role": "user", "content": content}
    await line.send("conversation.item.create", item=item)


def images_of(chat_model: FakeChatModel) -> list[PromptImage]:
    return [
        piece
        for message in chat_model.requests[-1].messages
        if isinstance(message, PromptContent)
        for piece in message.pieces
        if isinstance(piece, PromptImage)
    ]


async def test_image_is_shown_to_the_model_with_the_text_beside_it(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database
) -> None:
    async with open_line("model=Ada") as line:
        await show(
            line,
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": URL},
        )
        added = (await line.until("conversation.item.added"))["item"]
        await line.send("response.create")
        done = (await line.until("response.done"))["response"]
        await ask(line, "And now?")

    assert done["status"] == "completed", done
    assert [part["type"] for part in added["content"]] == ["input_text", "input_image"]
    (image,) = images_of(chat_model)  # also of the second request
    assert image.media_type == "image/png"
    async with database.reading() as db:
        question = (await db.scalars(select(Message).order_by(Message.seq))).first()
    assert question is not None
    assert question.content == "What is this?"
    assert [part["type"] for part in question.parts or ()] == ["text", "image"]
    assert added["id"] == f"item_{question.id.hex}"


async def test_question_about_an_image_may_be_spoken(
    open_line: OpenLine, chat_model: FakeChatModel, transcriber: FakeTranscriber, spoken: bytes
) -> None:
    async with open_line("model=Ada") as line:
        await show(line, {"type": "input_image", "image_url": URL})
        await line.until("conversation.item.done")
        await say(line, spoken + silence(800))
        done = (await line.until("response.done"))["response"]
        again = await ask(line, "And now?")

    assert (done["status"], again["status"]) == ("completed", "completed")
    for request in chat_model.requests:
        shown = [each for each in request.messages if isinstance(each, PromptContent)]
        (question,) = shown
        kinds = [type(piece) for piece in question.pieces]
        assert sorted(kinds, key=str) == sorted([PromptImage, str], key=str)
        assert transcriber.text in question.pieces


@pytest.mark.parametrize(
    ("url", "code", "is_event"),
    [
        ("https://a.example/x.png", "invalid_value", True),
        ("data:image/png;base64,%%%", "invalid_value", True),
        ("data:image/png;base64,aGVsbG8=", "unsupported_value", False),
    ],
)
async def test_image_that_is_none_is_refused(
    open_line: OpenLine, url: str, code: str, *, is_event: bool
) -> None:
    async with open_line("model=Ada") as line:
        await show(line, {"type": "input_image", "image_url": url})
        if is_event:
            error = (await line.until("error"))["error"]
        else:
            await line.send("response.create")
            error = (await line.until("response.done"))["response"]["status_details"]["error"]
        assert (await ask(line, "Hi."))["status"] == "completed"

    assert error["code"] == code


async def test_same_event_id_in_a_session_is_the_same_turn(
    open_line: OpenLine, chat_model: FakeChatModel, database: Database
) -> None:
    async def ask_once(line: WebSocket, text: str) -> dict[str, Any]:
        await send_message(line, text)
        await line.send("response.create", event_id="mine")
        return (await line.until("response.done"))["response"]

    async with open_line("model=Ada") as line:
        session = (await line.until("session.created"))["session"]["id"]
        first = await ask_once(line, "Hi.")
    async with open_line(f"session_id={session}") as line:
        again = await ask_once(line, "Hi.")
        other = await ask_once(line, "Something else.")
    async with open_line("model=Ada") as line:
        elsewhere = await ask_once(line, "Hi.")

    assert again["id"] == first["id"]
    assert again["status"] == "completed"
    assert again["output"] == first["output"]
    assert other["status"] == "failed"
    assert other["status_details"]["error"]["code"] == "idempotency_key_reused"
    assert elsewhere["id"] != first["id"]
    assert len(chat_model.requests) == 2
    async with database.reading() as db:
        assert len((await db.scalars(select(Turn.id))).all()) == 2


async def test_history_that_a_client_brings_needs_room(
    settings: Settings, database: Database, second_server: StartServer
) -> None:
    del database
    async with (
        second_server(limit_stored_mb_per_workspace=1) as server,
        line_of(settings, server)("model=Ada") as line,
    ):
        for number in range(2):
            await send_message(line, "x" * 600_000, "user", id=f"item{number}")
            await send_message(line, "Yes.", "assistant")
        refused = await ask(line, "Hi.")

    assert refused["status"] == "failed"
    assert refused["status_details"]["error"]["code"] == "storage_full"
