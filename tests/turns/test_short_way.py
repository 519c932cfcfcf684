"""Text messages go past FastAPI where they are plain: nobody can tell the difference."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest
from starlette.types import Message, Receive, Scope, Send

from app.core.security import ADMIN
from app.routers.short_way import ShortWay
from app.schemas.chat import ReplyRead
from app.services.ports import ProviderRejected
from app.state import State
from tests.fakes import FakeChatModel
from tests.sse import parse

pytestmark = pytest.mark.anyio

SHORT = {"content-type": "application/json"}
LONG = {"content-type": "application/json ; charset=utf-8"}
"""Not one of the spellings that the short way knows."""
DIFFER = {"request-id", "x-ratelimit-remaining", "content-length"}


async def both_ways(
    client: httpx2.AsyncClient, body: bytes, **headers: str
) -> tuple[httpx2.Response, httpx2.Response]:
    short, long = [
        await client.post("/messages/text", content=body, headers=headers | way)
        for way in (SHORT, LONG)
    ]
    assert short.status_code == long.status_code
    told = [
        {name: value for name, value in response.headers.items() if name not in DIFFER}
        for response in (short, long)
    ]
    assert told[0] == told[1]
    return short, long


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


async def test_answers_are_alike(client: httpx2.AsyncClient, session_id: str) -> None:
    body = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    short, long = (response.json() for response in await both_ways(client, body))

    changing = ("id", "turn_id", "seq", "created_at", "timings", "usage")
    assert short.keys() == long.keys()
    assert without(short, *changing) == without(long, *changing)
    assert (short["seq"], long["seq"]) == (2, 4)


async def test_answer_is_what_the_schema_says(client: httpx2.AsyncClient, session_id: str) -> None:
    response = await client.post("/messages/text", json={"session_id": session_id, "content": "Hi"})

    schema = ReplyRead.model_validate_json(response.content)
    assert schema.model_dump(mode="json") == response.json()
    assert list(ReplyRead.model_fields) == list(response.json())


async def test_streams_are_alike(client: httpx2.AsyncClient, session_id: str) -> None:
    body = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    streams = await both_ways(client, body, accept="text/event-stream")

    kinds = [  # how many deltas there are is a matter of time
        list(dict.fromkeys(event.type for event in parse(stream.text.splitlines())))
        for stream in streams
    ]
    assert kinds[0] == kinds[1]
    assert kinds[0][-1] == "turn.completed"


async def test_a_key_leads_from_one_way_to_the_other(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    body = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    headers = {"idempotency-key": "order-66"}
    first = await client.post("/messages/text", content=body, headers=headers | LONG)
    second = await client.post("/messages/text", content=body, headers=headers | SHORT)

    assert first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert len(chat_model.requests) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"[]", 422),
        (b'{"session_id": "SESSION"}', 422),
        (b'{"session_id": "SESSION", "content": " "}', 422),
        (b'{"session_id": "SESSION", "content": "\\ud800"}', 400),
        (b'{"session_id": "SESSION", "content": "Hi", "extra": 1}', 422),
        (b'{"session_id": "SESSION", "content": "Hi", "on_busy": "never"}', 422),
        (b'{"session_id": "UNKNOWN", "content": "Hi"}', 404),
        (b'{"session_id": "SESSION", "content": "' + b"x" * (1 << 20) + b'"}', 413),
    ],
)
async def test_refusals_are_alike(
    client: httpx2.AsyncClient, session_id: str, body: bytes, status: int
) -> None:
    body = body.replace(b"SESSION", session_id.encode()).replace(b"UNKNOWN", str(uuid4()).encode())
    short, long = await both_ways(client, body)

    assert short.status_code == status
    assert without(short.json(), "request_id") == without(long.json(), "request_id")


async def test_failures_of_a_turn_are_alike(
    client: httpx2.AsyncClient, session_id: str, chat_model: FakeChatModel
) -> None:
    async def refuse() -> None:
        raise ProviderRejected("No.")

    chat_model.while_thinking = refuse
    body = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    short, long = await both_ways(client, body)

    assert without(short.json(), "request_id", "turn_id") == without(
        long.json(), "request_id", "turn_id"
    )


@pytest.mark.parametrize("key", ["", "with space", "x" * 256, "\xe9"])
async def test_keys_that_are_none_are_refused_alike(
    client: httpx2.AsyncClient, session_id: str, key: str
) -> None:
    body = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    responses = [
        await client.post(
            "/messages/text",
            content=body,
            headers=[(b"idempotency-key", key.encode("latin-1")), *encoded(way)],
        )
        for way in (SHORT, LONG)
    ]

    assert [response.status_code for response in responses] == [422, 422]
    assert {response.json()["code"] for response in responses} == {"idempotency-key-invalid"}


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize(("headers", "is_short"), [(SHORT, True), (LONG, False)])
async def test_only_what_is_not_plain_reaches_the_endpoint(
    state: State, session_id: str, headers: dict[str, str], is_short: bool
) -> None:
    body = f'{{"session_id": "{session_id}", "content": "Hi"}}'.encode()
    passed_on: list[Message] = []
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def endpoint(_scope: Scope, receive: Receive, _send: Send) -> None:
        passed_on.append(await receive())

    lengths = [(b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/messages/text",
        "headers": [*encoded(headers), *lengths],
        "state": {**state, "caller": ADMIN, "request_id": "1"},
    }
    await ShortWay(endpoint)(scope, receive, send)

    assert statuses == ([200] if is_short else [])
    assert len(passed_on) == (0 if is_short else 1)
