"""Images and files in messages of `/v1`: what the model is shown, what is stored, and refused."""

from base64 import b64encode
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from app.core.config import Settings
from app.services.prompt_lines import PromptContent, PromptImage
from tests.files.made import png
from tests.openai_api.test_stored_responses import Json, ask, call
from tests.support.fake_providers import FakeChatModel

pytestmark = [pytest.mark.anyio]

IMAGE = png()
URL = "data:image/png;base64," + b64encode(IMAGE).decode()
TEXT = "data:text/plain;base64," + b64encode(b"The door code is 7.").decode()
SHOWN = 'File "notes.txt":\n\nThe door code is 7.\n\n(End of the file)'
IMAGE_PART = {"type": "input_image", "image_url": URL, "detail": "auto"}
FILE_PART = {"type": "input_file", "filename": "notes.txt", "file_data": TEXT}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a provider whose models may see images."""
    return settings.model_copy(update={"openai_api_key": SecretStr("sk-unused-key-of-a-test")})


@pytest.fixture
async def seeing_agent(client: httpx2.AsyncClient) -> None:
    body = {"name": "Ada", "system_prompt": "Be brief.", "vision": True}
    assert (await client.post("/agents", json=body)).status_code == 201


def asked(*parts: Any) -> list[Json]:
    return [{"role": "user", "content": [{"type": "input_text", "text": "What is this?"}, *parts]}]


@pytest.mark.usefixtures("seeing_agent")
@pytest.mark.parametrize("store", [True, False])
async def test_model_is_shown_images_and_texts_of_files(
    client: httpx2.AsyncClient, chat_model: FakeChatModel, *, store: bool
) -> None:
    await ask(client, input=asked(IMAGE_PART, FILE_PART), store=store)

    line = chat_model.requests[0].messages[-1]
    assert isinstance(line, PromptContent)
    assert line.pieces == ("What is this?", PromptImage("image/png", IMAGE), SHOWN)


@pytest.mark.usefixtures("seeing_agent")
async def test_chat_completions_have_them_in_their_shape(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "file", "file": {"filename": "notes.txt", "file_data": TEXT}},
    ]
    body = {"model": "agent-ada", "messages": [{"role": "user", "content": content}]}

    response = await client.post("/v1/chat/completions", json=body)

    assert response.status_code == 200, response.text
    line = chat_model.requests[0].messages[-1]
    assert isinstance(line, PromptContent)
    assert line.pieces == ("What is this?", PromptImage("image/png", IMAGE), SHOWN)


@pytest.mark.usefixtures("seeing_agent")
async def test_image_of_an_earlier_message_is_shown_again_and_listed(
    client: httpx2.AsyncClient, chat_model: FakeChatModel
) -> None:
    items = [*asked(IMAGE_PART), {"role": "assistant", "content": "A dot."}, *asked(FILE_PART)]
    first = await ask(client, input=items)
    await ask(client, input="And now?", previous_response_id=first["id"])

    pictured = [type(line) for line in chat_model.requests[-1].messages].count(PromptContent)
    page = await call(client, "GET", f"responses/{first['id']}/input_items?order=asc")
    kinds = [part["type"] for item in page["data"] for part in item["content"]]
    assert pictured == 1
    assert kinds == ["input_text", "input_image", "output_text", "input_text", "input_file"]


@pytest.mark.parametrize(
    ("param", "part"),
    [
        ("input[0].content[1]", {"type": "input_image", "image_url": "https://a.example/x.png"}),
        ("input[0].content[1]", {"type": "input_image", "file_id": "file_1"}),
        ("input[0].content[1]", {"type": "input_file", "file_data": "data:;base64,%%%"}),
        ("input[0].content[1].type", {"type": "input_audio", "input_audio": {}}),
    ],
)
@pytest.mark.usefixtures("seeing_agent")
async def test_part_that_cannot_be_taken_is_named(
    client: httpx2.AsyncClient, param: str, part: Json
) -> None:
    refused = await ask(client, 400, input=asked(part))

    assert refused["error"]["param"] == param


async def test_model_without_eyes_refuses_images(client: httpx2.AsyncClient) -> None:
    await client.post("/agents", json={"name": "Ada", "system_prompt": "", "vision": False})

    refused = await ask(client, 400, input=asked(IMAGE_PART))
    broken = "data:image/png;base64," + b64encode(b"no image").decode()
    unreadable = await ask(client, 400, input=asked({**IMAGE_PART, "image_url": broken}))

    assert refused["error"]["code"] == "unsupported_value"
    assert unreadable["error"]["code"] == "unsupported_value"
