"""`POST /messages/text`: one plain endpoint that refuses and answers as every other one."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from starlette.types import Message

from app.core.security import ADMIN
from app.http.request_body import MESSAGE_BYTES
from app.main import app
from app.routers.messages_text import send_text_message
from app.schemas.chat import ReplyRead
from app.services.ports import ProviderRejected
from app.state import State
from tests.support.fake_providers import FakeChatModel
from tests.support.sse import parse

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


def body_of(session_id: str, **more: object) -> dict[str, Any]:
    return {"session_id": session_id, "content": "Hi", **more}


async def call(
    state: State, messages: list[Message], headers: list[tuple[bytes, bytes]]
) -> tuple[int, bytes]:
    """Call the ASGI application itself with these messages; return status and body."""
    statuses: list[int] = []
    sent: list[bytes] = []
    waiting = list(messages)

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        else:
            sent.append(message["body"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/messages/text",
        "headers": headers,
        "state": {**state, "caller": ADMIN, "request_id": "1"},
    }
    await send_text_message(scope, receive, send)
    return statuses[0], b"".join(sent)


async def test_answer_is_what_the_schema_says(client: httpx2.AsyncClient, session_id: str) -> None:
    response = await client.post("/messages/text", json=body_of(session_id))

    schema = ReplyRead.model_validate_json(response.content)
    assert schema.model_dump(mode="json") == response.json()
    assert list(ReplyRead.model_fields) == list(response.json())


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json ; charset=utf-8", "Application/JSON;charset=UTF-8"],
)
async def test_media_type_may_be_written_in_every_way(
    client: httpx2.AsyncClient, session_id: str, content_type: str
) -> None:
    content = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    response = await client.post(
        "/messages/text", content=content, headers={"content-type": content_type}
    )

    assert response.status_code == 200


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "multipart/form-data", "application/js"]
)
async def test_other_media_types_are_refused(
    client: httpx2.AsyncClient, session_id: str, content_type: str
) -> None:
    content = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    response = await client.post(
        "/messages/text", content=content, headers={"content-type": content_type}
    )

    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "request-invalid"),
        (b"{", 400, "malformed-body"),
        (b"[]", 422, "request-invalid"),
        (b'{"session_id": "SESSION"}', 422, "request-invalid"),
        (b'{"session_id": "SESSION", "content": " "}', 422, "request-invalid"),
        (b'{"session_id": "SESSION", "content": "\\ud800"}', 400, "malformed-body"),
        (b'{"session_id": "SESSION", "content": "Hi", "extra": 1}', 422, "request-invalid"),
        (b'{"session_id": "SESSION", "content": "Hi", "on_busy": "no"}', 422, "request-invalid"),
        (b'{"session_id": "UNKNOWN", "content": "Hi"}', 404, "session-not-found"),
        (b'{"session_id": "SESSION", "content": "LONG"}', 422, "request-invalid"),
        (b'{"session_id": "SESSION", "content": "TOO LARGE"}', 413, "body-too-large"),
    ],
)
async def test_bad_bodies_are_refused(
    client: httpx2.AsyncClient, session_id: str, body: bytes, status: int, code: str
) -> None:
    body = body.replace(b"SESSION", session_id.encode()).replace(b"UNKNOWN", str(uuid4()).encode())
    body = body.replace(b"LONG", b"x" * 200_001).replace(b"TOO LARGE", b"x" * MESSAGE_BYTES)
    response = await client.post("/messages/text", content=body, headers=JSON)

    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", [["body"]]),
        (b'{"content": "Hi"}', [["body", "session_id"]]),
        (b'{"session_id": "x", "content": ""}', [["body", "session_id"], ["body", "content"]]),
        (b'{"session_id": "SESSION", "content": "Hi", "extra": "secret"}', [["body", "extra"]]),
    ],
)
async def test_refusals_name_the_fields_and_do_not_repeat_their_values(
    client: httpx2.AsyncClient, session_id: str, body: bytes, fields: list[list[str]]
) -> None:
    body = body.replace(b"SESSION", session_id.encode())
    response = await client.post("/messages/text", content=body, headers=JSON)

    assert [error["loc"] for error in response.json()["errors"]] == fields
    assert "secret" not in response.text


@pytest.mark.parametrize("character", ["x", "\u4e2d", "\U0001f600"])
async def test_characters_are_counted_however_they_are_escaped(
    client: httpx2.AsyncClient, agent_id: str, session_id: str, character: str
) -> None:
    await client.put(f"/agents/{agent_id}", json={"context_tokens": 1_000_000})
    escaped = character.encode("unicode_escape").decode()
    if len(escaped) > 6:
        high, low = character.encode("utf-16-be").hex()[:4], character.encode("utf-16-be").hex()[4:]
        escaped = f"\\u{high}\\u{low}"
    content = f'{{"session_id": "{session_id}", "content": "{escaped * 190_000}"}}'.encode()
    response = await client.post("/messages/text", content=content, headers=JSON)

    assert response.status_code == 200


async def test_body_in_pieces_is_read_to_its_end(state: State, session_id: str) -> None:
    content = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    pieces: list[Message] = [
        {"type": "http.request", "body": content[:20], "more_body": True},
        {"type": "http.request", "body": content[20:], "more_body": True},
        {"type": "http.request", "body": b"", "more_body": False},
    ]

    status, _ = await call(state, pieces, [(b"content-type", b"application/json")])

    assert status == 200


async def test_body_that_breaks_off_stores_nothing(
    state: State, session_id: str, client: httpx2.AsyncClient
) -> None:
    content = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    pieces: list[Message] = [
        {"type": "http.request", "body": content, "more_body": True},
        {"type": "http.disconnect"},
    ]

    status, _ = await call(state, pieces, [(b"content-type", b"application/json")])

    assert status == 400
    assert (await client.get(f"/sessions/{session_id}")).json()["messages"] == []


async def test_body_that_announces_less_than_it_sends_is_bounded(
    state: State, session_id: str
) -> None:
    pieces: list[Message] = [
        {"type": "http.request", "body": b" " * 1_000_000, "more_body": True} for _ in range(30)
    ]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]

    status, _ = await call(state, pieces, headers)

    assert status == 413
    assert session_id


async def test_failure_of_a_turn_is_a_problem_with_its_id(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("No.")

    chat_model.while_thinking = refuse
    response = await client.post("/messages/text", json=body_of(session_id))

    problem = response.json()
    turn = (await client.get(f"/turns/{problem['turn_id']}")).json()
    assert response.status_code == 502
    assert problem["code"] == turn["error"]["code"] == "provider-rejected"


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "\xe9"])
async def test_invalid_idempotency_keys_are_refused(
    client: httpx2.AsyncClient, session_id: str, key: str
) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1")), (b"content-type", b"application/json")]
    content = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    response = await client.post("/messages/text", content=content, headers=headers)

    assert response.status_code == 422
    assert response.json()["code"] == "idempotency-key-invalid"


async def test_client_that_disconnects_cancels_its_turn_where_it_asked_for_that(
    state: State, session_id: str, chat_model: FakeChatModel, client: httpx2.AsyncClient
) -> None:
    asked = asyncio.Event()

    async def think() -> None:
        asked.set()
        await asyncio.Event().wait()

    chat_model.while_thinking = think
    content = (
        f'{{"session_id": "{session_id}", "content": "Hi", "on_disconnect": "cancel"}}'.encode()
    )

    async def receive() -> Message:
        if not asked.is_set() and not received:
            received.append(True)
            return {"type": "http.request", "body": content, "more_body": False}
        await asked.wait()
        return {"type": "http.disconnect"}

    received: list[bool] = []
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/messages/text",
        "headers": [(b"content-type", b"application/json")],
        "state": {**state, "caller": ADMIN, "request_id": "1"},
    }
    await send_text_message(scope, receive, send)

    answer = (await client.get(f"/sessions/{session_id}")).json()["messages"][1]
    assert statuses == [409]
    assert answer["status"] == "cancelled"


@pytest.mark.parametrize(
    ("accept", "streams"),
    [
        (["text/event-stream"], True),
        (["TEXT/Event-Stream"], True),
        (["text/event-stream;q=0"], False),
        (["text/event-stream; q=0.0, */*"], False),
        (["application/json, text/event-stream;q=0.5"], False),
        (["application/json;q=0.5, text/event-stream"], True),
        (["application/json;q=0.5", "text/event-stream;q=0.9"], True),
        (["text/event-stream, application/json"], True),
        (["application/json, text/event-stream"], False),
        (["*/*"], False),
        (["*/*, text/event-stream;q=0.1"], True),
        (["text/event-stream;q=nonsense"], True),
        (["text/event-streams"], False),
        ([], False),
    ],
)
async def test_accept_decides_whether_the_turn_is_streamed(
    client: httpx2.AsyncClient, session_id: str, accept: list[str], streams: bool
) -> None:
    headers = [(b"accept", value.encode()) for value in accept]
    request = client.build_request("POST", "/messages/text", json=body_of(session_id))
    request.headers = httpx2.Headers(
        [pair for pair in request.headers.raw if pair[0].lower() != b"accept"] + headers
    )
    response = await client.send(request)

    is_stream = response.headers["content-type"].startswith("text/event-stream")
    assert response.status_code == 200
    assert is_stream is streams
    if streams:
        assert parse(response.text.splitlines())[-1].type == "turn.completed"


def test_openapi_describes_the_endpoint() -> None:
    operation = app.openapi()["paths"]["/messages/text"]["post"]

    body = operation["requestBody"]["content"]["application/json"]["schema"]
    answer = operation["responses"]["200"]["content"]
    assert body == {"$ref": "#/components/schemas/TextMessageCreate"}
    assert answer["application/json"]["schema"] == {"$ref": "#/components/schemas/ReplyRead"}
    assert "text/event-stream" in answer
    assert [parameter["name"] for parameter in operation["parameters"]] == [
        "Idempotency-Key",
        "Prefer",
    ]
