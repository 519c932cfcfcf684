"""Messages with images and documents: what is stored, and what the model is shown, and when."""

import base64
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import httpx2
import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import delete, select

from app.core.config import Settings
from app.core.database import Database
from app.core.security import ADMIN
from app.models import Budget, SessionFile, StoredFile, Turn
from app.services.prompt_lines import PromptContent, PromptImage
from app.services.turns import TurnOptions
from app.services.turns.context.prompt import build_prompt
from app.services.turns.execution.live_turn import LiveTurn
from app.services.turns.parts import ImagePart, TextPart, encode_parts
from app.services.turns.records import HistoryMessage
from app.state import State
from tests.conftest import StartServer
from tests.files import made
from tests.files.conftest import Upload
from tests.support.application import client_of
from tests.support.fake_providers import FakeChatModel
from tests.support.sse import parse
from tests.support.turns import Gate, abandon

pytestmark = pytest.mark.anyio
TEXT: dict[str, Any] = {"type": "text", "text": "Look"}


def image(file: dict[str, Any]) -> dict[str, Any]:
    return {"type": "image", "file_id": file["id"]}


def document(file: dict[str, Any]) -> dict[str, Any]:
    return {"type": "file", "file_id": file["id"]}


def inline(data: bytes, prefix: str = "") -> dict[str, Any]:
    return {"type": "image", "data": prefix + base64.b64encode(data).decode()}


async def send(
    client: httpx2.AsyncClient, session_id: str, *content: Any, **headers: str
) -> httpx2.Response:
    body = {"session_id": session_id, "content": list(content)}
    return await client.post("/messages/text", json=body, headers=headers)


def shown(model: FakeChatModel, number: int = -1) -> list[Any]:
    """Return the last user message of a request, as its pieces."""
    line = [line for line in model.requests[number].messages if line.role == "user"][-1]
    if not isinstance(line, PromptContent):
        return [line.content]
    return [piece if isinstance(piece, str) else piece.data for piece in line.pieces]


async def file_count(database: Database) -> int:
    async with database.reading() as db:
        return len((await db.scalars(select(StoredFile.id))).all())


async def test_model_is_shown_images_and_the_text_of_documents_in_their_order(
    client: httpx2.AsyncClient, session_id: str, upload: Upload, chat_model: FakeChatModel
) -> None:
    picture, page = await upload("a.png", made.png()), await upload("b.txt", b"Words of a file")
    large = await upload("c.png", made.png(padding=1_500_000))
    parts = [TEXT, image(picture), document(page), inline(made.gif()), image(large)]

    response = await send(client, session_id, *parts)

    assert response.status_code == 200, response.text
    text = 'File "b.txt":\n\nWords of a file\n\n(End of the file)'
    assert shown(chat_model) == ["Look", made.png(), text, made.gif(), made.png(padding=1_500_000)]
    messages = (await client.get(f"/sessions/{session_id}/messages")).json()
    assert messages[0]["content"] == "Look"
    assert [part["type"] for part in messages[0]["parts"]] == [
        "text", "image", "file", "image", "image",
    ]  # fmt: skip
    assert messages[0]["parts"][1] == {
        "type": "image", "file_id": picture["id"], "media_type": "image/png", "width": 3,
        "height": 2, "size_bytes": len(made.png()),
    }  # fmt: skip
    assert messages[0]["parts"][2]["text_tokens"] == page["text_tokens"]
    assert (await client.get(f"/files/{picture['id']}")).json()["expires_at"] is None


async def test_later_turns_are_shown_the_same_bytes_again(
    client: httpx2.AsyncClient, session_id: str, upload: Upload, chat_model: FakeChatModel
) -> None:
    page = await upload("b.txt", b"Words")
    await send(client, session_id, inline(made.png()), document(page))
    for _ in range(2):
        await client.post("/messages/text", json={"session_id": session_id, "content": "And?"})

    first, second, third = (list(request.messages) for request in chat_model.requests)
    assert second[: len(first)] == first
    assert third[: len(second)] == second


async def test_message_of_images_alone_is_no_blank_message(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    assert (await send(client, session_id, inline(made.png()))).status_code == 200
    await client.post("/messages/text", json={"session_id": session_id, "content": "And?"})

    assert [line.role for line in chat_model.requests[1].messages] == [
        "system", "user", "assistant", "user",
    ]  # fmt: skip
    assert isinstance(chat_model.requests[1].messages[1], PromptContent)


async def test_parts_of_text_alone_are_plain_text(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    other = {"type": "text", "text": "here"}
    assert (await send(client, session_id, TEXT, other)).status_code == 200

    assert chat_model.prompts[0][-1] == ("user", "Look\n\nhere")
    messages = (await client.get(f"/sessions/{session_id}/messages")).json()
    assert messages[0]["parts"] is None


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        ([], 422, ["body", "content"]),
        ([{"type": "image"}], 422, ["body", "content", 0, "image"]),
        ([{"type": "image", "data": "@@"}], 422, ["body", "content", 0, "data"]),
        ([{"type": "image", "data": "QQ==", "file_id": str(uuid4())}], 422, None),
        ([{"type": "video"}], 422, ["body", "content", 0]),
        ([{"type": "text", "text": " "}], 422, ["body", "content", 0, "text", "text"]),
        ([{"type": "text", "text": "a", "x": 1}], 422, None),
        ([inline(made.png())] * 9, 422, ["body", "content"]),
        ([{"type": "text", "text": "a" * 150_000}] * 2, 422, ["body", "content"]),
        (["text"], 422, None),
        ({"type": "text"}, 422, ["body", "content"]),
        (5, 422, ["body", "content"]),
        ("", 422, ["body", "content"]),
    ],
)
async def test_wrong_content_is_told_where(
    client: httpx2.AsyncClient, session_id: str, content: object, status: int, field: object
) -> None:
    body = {"session_id": session_id, "content": content}
    response = await client.post("/messages/text", json=body)

    assert response.status_code == status, response.text
    assert field is None or response.json()["errors"][0]["loc"] == field
    assert (await client.get(f"/sessions/{session_id}")).json()["last_seq"] == 0


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"<svg/>", 422, "file-unreadable"),
        (b"", 422, "file-unreadable"),
        (made.png_header(9000, 9000), 413, "file-too-large"),
    ],
)
async def test_inline_bytes_that_are_no_image_are_refused(
    client: httpx2.AsyncClient,
    session_id: str,
    database: Database,
    data: bytes,
    status: int,
    code: str,
) -> None:
    response = await send(client, session_id, inline(made.png()), inline(data))

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert not await file_count(database)


async def test_data_url_is_taken_as_inline_image(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    part = inline(made.png(), "data:image/png;base64,")
    assert (await send(client, session_id, part)).status_code == 200
    assert shown(chat_model) == [made.png()]


async def test_image_of_twenty_megabytes_comes_inline(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    data = made.png(padding=19_990_000)
    assert (await send(client, session_id, inline(data))).status_code == 200
    assert shown(chat_model) == [data]


async def test_large_body_of_many_values_is_refused_unread(client: httpx2.AsyncClient) -> None:
    content = b'{"session_id":"x","content":[' + b"[]," * 1_500_000 + b"[]]}"
    response = await client.post(
        "/messages/text", content=content, headers={"Content-Type": "application/json"}
    )
    assert (response.status_code, response.json()["code"]) == (413, "body-too-large")


async def test_images_of_one_message_are_limited_together(
    client: httpx2.AsyncClient, session_id: str, upload: Upload
) -> None:
    files = [await upload("a.png", made.png(padding=19_000_000)) for _ in range(3)]
    response = await send(client, session_id, *map(image, files))

    assert (response.status_code, response.json()["code"]) == (413, "file-too-large")
    assert (await client.get(f"/sessions/{session_id}")).json()["last_seq"] == 0


async def test_file_of_the_wrong_kind_or_unknown_is_told(
    client: httpx2.AsyncClient, session_id: str, upload: Upload
) -> None:
    picture, page = await upload("a.png", made.png()), await upload("b.txt", b"Words")
    for part, status, code in (
        (document(picture), 422, "file-unreadable"),
        (image(page), 422, "file-unreadable"),
        (document({"id": str(uuid4())}), 404, "file-not-found"),
    ):
        response = await send(client, session_id, part)
        assert (response.status_code, response.json()["code"]) == (status, code)


async def test_unknown_session_is_told_before_anything_is_stored(
    client: httpx2.AsyncClient, database: Database
) -> None:
    response = await send(client, str(uuid4()), inline(made.png()))
    assert (response.status_code, response.json()["code"]) == (404, "session-not-found")
    assert not await file_count(database)


@pytest.mark.parametrize(
    ("setting", "vision", "status"),
    [
        ({}, None, 200),
        ({}, False, 422),
        ({"chat_model_vision": False}, None, 422),
        ({"chat_model_vision": False}, True, 200),
        ({"openai_base_url": "http://ollama.example/v1"}, None, 422),
        ({"openai_base_url": "http://ollama.example/v1", "chat_model_vision": True}, None, 200),
        ({"openai_api_key": None}, True, 422),
    ],
)
async def test_images_need_a_model_that_sees_them(
    settings: Settings,
    second_server: StartServer,
    agent_id: str,
    session_id: str,
    database: Database,
    setting: dict[str, Any],
    vision: bool | None,
    status: int,
) -> None:
    async with second_server(**setting) as other, client_of(settings, other) as client:
        await client.patch(f"/agents/{agent_id}", json={"vision": vision})
        response = await send(client, session_id, inline(made.png()))
        assert response.status_code == status, response.text
        if status == 422:
            assert response.json()["code"] == "images-not-supported"
            assert not await file_count(database)
            assert (await client.get(f"/sessions/{session_id}")).json()["last_seq"] == 0
        page = await client.post("/files", files={"file": ("a.txt", b"Words")})
        assert (await send(client, session_id, document(page.json()))).status_code == 200


async def test_model_without_vision_is_told_of_earlier_images(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, chat_model: FakeChatModel
) -> None:
    await send(client, session_id, TEXT, inline(made.png()))
    await client.patch(f"/agents/{agent_id}", json={"vision": False})
    await client.post("/messages/text", json={"session_id": session_id, "content": "And?"})

    assert chat_model.prompts[1][1] == ("user", "Look\n\n[an image that this model cannot see]")


async def test_files_that_are_gone_are_said_to_be(
    client: httpx2.AsyncClient,
    session_id: str,
    upload: Upload,
    chat_model: FakeChatModel,
    database: Database,
) -> None:
    page = await upload("b.txt", b"Words")
    await send(client, session_id, inline(made.png()), document(page))
    async with database.transaction() as db:
        await db.execute(delete(SessionFile))
        await db.execute(delete(StoredFile))
    await client.post("/messages/text", json={"session_id": session_id, "content": "And?"})

    gone = "[a file that is not stored any more]"
    assert chat_model.prompts[1][1] == ("user", f"{gone}\n\n{gone}")


async def test_two_messages_that_are_joined_keep_their_images(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    chat_model.answer = ""
    assert (await send(client, session_id, TEXT, inline(made.png()))).status_code == 502
    chat_model.answer = "Yes"
    await client.post("/messages/text", json={"session_id": session_id, "content": "Hello?"})

    assert shown(chat_model) == ["Look", made.png(), "Hello?"]


async def test_streamed_and_spoken_answers_take_parts(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    body = {"session_id": session_id, "content": [TEXT, inline(made.png())]}
    stream = {"Accept": "text/event-stream"}
    streamed = await client.post("/messages/text", json=body, headers=stream)
    assert [event.type for event in parse(streamed.text.split("\n"))][-1] == "turn.completed"
    spoken = await client.post("/messages/text", json=body | {"output": "voice"})
    assert spoken.headers["content-type"] == "audio/mpeg"
    assert shown(chat_model) == ["Look", made.png()]


async def test_repeated_key_replays_the_turn(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    key = {"Idempotency-Key": "k"}
    first = await send(client, session_id, inline(made.png()), **key)
    again = await send(client, session_id, inline(made.png()), **key)

    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == first.json()
    assert len(chat_model.requests) == 1


async def test_turn_that_another_server_takes_over_is_shown_its_files(
    client: httpx2.AsyncClient,
    session_id: str,
    upload: Upload,
    state: State,
    database: Database,
    second_server: StartServer,
) -> None:
    gate, model = Gate(), FakeChatModel()
    engine: Any = state["turns"]
    page = await upload("b.txt", b"Words")
    first = FakeChatModel()
    first.while_thinking = gate
    engine._runtime = replace(engine._runtime, chat_model=first)  # noqa: SLF001
    given = [TEXT, inline(made.png()), document(page)]
    body = {"session_id": session_id, "content": given}
    started = await client.post("/messages/text", json=body, headers={"Prefer": "respond-async"})
    await gate.arrived.wait()
    turn_id = UUID(started.json()["id"])
    await abandon(database, turn_id)
    async with second_server(chat_model=model) as other:
        live: LiveTurn = await other["turns"].find(ADMIN, turn_id)
        await other["turns"].wait(live)
    gate.opened.set()

    text = 'File "b.txt":\n\nWords\n\n(End of the file)'
    assert shown(model) == ["Look", made.png(), text]


async def test_files_stay_until_the_last_session_that_uses_them_is_deleted(
    client: httpx2.AsyncClient, session_id: str, upload: Upload, state: State
) -> None:
    file = await upload("a.png", made.png())
    await send(client, session_id, image(file))
    assert (await client.delete(f"/files/{file['id']}")).json()["code"] == "file-in-use"
    fork = (await client.post(f"/sessions/{session_id}/fork", json={})).json()["id"]
    await client.delete(f"/sessions/{session_id}")
    await state["files"].prune()
    assert (await client.get(f"/files/{file['id']}/content")).content == made.png()

    await client.delete(f"/sessions/{fork}")

    assert (await client.get(f"/files/{file['id']}")).status_code == 404


async def test_fork_is_shown_the_files_of_what_it_copied(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    await send(client, session_id, TEXT, inline(made.png()))
    fork = (await client.post(f"/sessions/{session_id}/fork", json={})).json()["id"]
    await client.delete(f"/sessions/{session_id}")
    await client.post("/messages/text", json={"session_id": fork, "content": "And?"})

    line = chat_model.requests[-1].messages[1]
    assert isinstance(line, PromptContent)
    assert line.pieces == ("Look", PromptImage("image/png", made.png()))


async def test_file_that_is_deleted_before_the_turn_is_accepted_is_not_found(
    client: httpx2.AsyncClient, session_id: str, upload: Upload, state: State
) -> None:
    file = await upload("a.png", made.png())
    await client.delete(f"/files/{file['id']}")
    parts = [ImagePart(file["id"], "image/png", 3, 2, 10)]
    with pytest.raises(Exception, match="No file"):
        await state["turns"].start(ADMIN, UUID(session_id), "x", None, TurnOptions(parts=parts))
    assert (await client.get(f"/sessions/{session_id}")).json()["last_seq"] == 0


async def test_deleted_user_takes_their_files_along(
    client: httpx2.AsyncClient, agent_id: str, upload: Upload, database: Database
) -> None:
    body = {"agent_id": agent_id, "user_id": "user-1"}
    session_id = (await client.post("/sessions", json=body)).json()["id"]
    file = await upload("a.png", made.png())
    await send(client, session_id, image(file), inline(made.gif()))
    async with database.transaction() as db:
        for each in await db.scalars(select(StoredFile)):
            each.user_id = "user-1"

    receipt = (await client.delete("/users/user-1")).json()

    assert receipt["files"] == 2
    assert (await client.get("/files")).json() == []


async def test_export_has_the_files_and_on_demand_their_bytes(
    client: httpx2.AsyncClient, session_id: str, upload: Upload
) -> None:
    file = await upload("a.png", made.png(padding=1_500_000))
    await send(client, session_id, image(file))
    path = f"/sessions/{session_id}/export"
    without, with_bytes = [(await client.get(path + end)).json() for end in ("", "?files=true")]

    assert [(each["id"], each["data"]) for each in without["files"]] == [(file["id"], None)]
    data = base64.b64decode(with_bytes["files"][0]["data"])
    assert data == made.png(padding=1_500_000)
    lines = (await client.get("/sessions/export")).text.splitlines()
    assert f'"files":[{{"id":"{file["id"]}"' in lines[0]


async def test_budget_reserves_images_and_documents(
    client: httpx2.AsyncClient,
    session_id: str,
    upload: Upload,
    database: Database,
    chat_model: FakeChatModel,
) -> None:
    page = await upload("b.txt", b"word " * 2000)
    reserved: list[int] = []

    async def note() -> None:
        async with database.reading() as db:
            newest = select(Turn.reserved_tokens).order_by(Turn.id.desc()).limit(1)
            reserved.append(await db.scalar(newest) or 0)

    chat_model.while_thinking = note
    await client.post("/messages/text", json={"session_id": session_id, "content": "Look"})
    await send(client, session_id, TEXT, inline(made.png()), document(page))
    async with database.reading() as db:
        budgets = (await db.scalars(select(Budget.live_turns))).all()

    assert reserved[1] - reserved[0] >= 1100 + page["text_tokens"]
    assert set(budgets) <= {0}


async def test_usage_without_counts_is_estimated_with_the_images(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    chat_model.counts = (None, None, None)
    usage = (await send(client, session_id, TEXT, inline(made.png()))).json()["usage"]
    assert usage["estimated"]
    assert 1100 <= usage["prompt_tokens"] <= 1200


async def test_document_that_exceeds_the_window_is_refused(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, upload: Upload
) -> None:
    page = await upload("b.txt", b"word " * 2000)
    await client.patch(f"/agents/{agent_id}", json={"context_tokens": 2000})
    response = await send(client, session_id, document(page))
    assert (response.status_code, response.json()["code"]) == (422, "message-too-long")
    assert (await client.get(f"/sessions/{session_id}")).json()["last_seq"] == 0


def history_of(count: int, size_bytes: int, *, images: int = 1) -> list[HistoryMessage]:
    """Questions with images, each with its answer, and a last question."""
    part = ImagePart(str(uuid4()), "image/png", 3, 2, size_bytes)
    parts = orjson.dumps(encode_parts([TextPart("Look"), *[part] * images])).decode()
    lines: list[HistoryMessage] = []
    for number in range(count):
        lines.append(HistoryMessage(2 * number + 1, "user", "completed", "Look", parts=parts))
        lines.append(HistoryMessage(2 * number + 2, "assistant", "completed", "Nice."))
    return [*lines, HistoryMessage(2 * count + 1, "user", "completed", "And?")]


@pytest.mark.parametrize(
    ("size_bytes", "context_tokens"),
    [(1000, 8000), (10_000_000, 1_000_000)],
    ids=["tokens", "bytes"],
)
def test_window_counts_images_and_moves_seldom(size_bytes: int, context_tokens: int) -> None:
    starts: list[int] = []
    for count in range(1, 60):
        lines = build_prompt(
            "", history_of(count, size_bytes), context_tokens=context_tokens, output_tokens=500
        )
        questions = sum(line.role == "user" for line in lines) - 1
        assert questions * 1100 < context_tokens
        assert questions * size_bytes <= 48_000_000
        starts.append(count - questions)
    assert starts == sorted(starts)
    assert starts[-1] > 40
    assert len(set(starts)) < 40


async def test_plain_turn_asks_for_no_files(
    client: httpx2.AsyncClient, session_id: str, state: State
) -> None:
    engine: Any = state["turns"]
    plain = {"session_id": session_id, "content": "Hi"}
    await client.post("/messages/text", json=plain)
    count = 0

    async def counted(*_: object) -> None:
        nonlocal count
        count += 1

    engine._runtime.files.library.contents = counted  # noqa: SLF001
    await client.post("/messages/text", json=plain)
    assert not count


def test_settings_say_what_sees_images(settings: Settings) -> None:
    compatible = settings.model_copy(update={"openai_base_url": "http://localhost:11434/v1"})
    assert (settings.has_vision, compatible.has_vision) == (True, False)
    key = SecretStr("sk-unused-key-of-a-test")
    assert compatible.model_copy(
        update={"openai_api_key": key, "chat_model_vision": True}
    ).has_vision
